"""Fuzz everything that reads files of others; the tests do the same for a minute.

``python tests/fuzz/fuzz.py --examples 10000`` prints inputs, outcomes and seconds, and writes them
to ``benchmarks/results/fuzz.csv``. What must hold: it works, or one documented error with one clear
message; nothing is run, or written elsewhere. Exit status 1 if an input breaks this: the first of
each kind is printed, to become a test.
"""

import argparse
import copy
import csv
import functools
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests'), str(Path(__file__).parent)]

import fuzz_inputs as inputs  # noqa: E402
import golden  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from mmengine.config import Config  # noqa: E402

from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of  # noqa: E402
from coc_mm.checkpoints.official import recognise  # noqa: E402
from coc_mm.datasets import resolve_custom  # noqa: E402
from coc_mm.errors import UserError  # noqa: E402
from coc_mm.utils.image_checks import validate_image  # noqa: E402

SECONDS = 20  # of computing that one input may take
# Of Python's audit events: what a reader of files has no business with.
_FORBIDDEN = ('os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'subprocess.', 'socket.')
_SEEN: list[str] = []


@functools.cache
def _watch():
    """Note forbidden events from now on; hooks cannot be taken back, so once."""
    _config()  # mmengine makes a folder when it reads one
    sys.addaudithook(lambda event, _: event.startswith(_FORBIDDEN) and _SEEN.append(event))


class BrokenError(AssertionError):
    """What must hold does not."""


@dataclass(frozen=True)
class Target:
    """Something that reads files of others: takes an input and a folder of its own."""

    name: str
    inputs: st.SearchStrategy
    use: Callable
    errors: tuple = (UserError,)
    share: float = 1
    needs: str = 'torch'


def judge(target, case):
    """Use an input in a new folder; return the outcome, or raise BrokenError."""
    _watch()
    _SEEN.clear()
    start = time.process_time()
    with tempfile.TemporaryDirectory(prefix='fuzz_') as name, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        folder = Path(name) / 'own'
        folder.mkdir()
        try:
            outcome = target.use(case, folder) or 'works'
        except target.errors as error:
            outcome, text = type(error).__name__, str(error)
            if not text.strip() or len(text) > 3000 or 'Traceback' in text:
                raise BrokenError(f'{target.name}: a message of no use: {text[:300]!r}') from error
        except Exception as error:
            raise BrokenError(f'{target.name}: {type(error).__name__}: {error}') from error
        if _SEEN:
            raise BrokenError(f'{target.name}: {_SEEN[0]}')
        if any(folder.rglob('RUN*')) or os.listdir(name) != ['own']:
            raise BrokenError(f'{target.name}: code was run, or something written elsewhere')
    if time.process_time() - start > SECONDS:
        raise BrokenError(f'{target.name}: {time.process_time() - start:.0f} s')
    return outcome


# Targets


def _load(case, folder):
    name, content = case
    path = folder / name
    path.write_bytes(content)
    for value in state_dict_of(load_checkpoint_safely(path), str(path)).values():
        value.clone()


@functools.cache
def _shapes():
    return json.loads((golden.FOLDER / 'keys' / 'coc_tiny.json').read_text())


def _official(case, _):
    changes, meta, ema, arch = case
    checkpoint = dict(state_dict=inputs.changed_weights(_shapes(), changes), meta=meta)
    official = recognise(checkpoint, 'x.pth', ema)
    if official is None:
        return 'other'
    official.arch(arch)
    official.proposals()
    official.converted()
    return None


@functools.cache
def _config():
    return Config.fromfile(ROOT / 'configs/detection/mask-rcnn_coc-s-c4_fpn_1xb2-12e_custom.py')


def _coco(text, folder):
    for name in ('annotations', 'train'):
        (folder / name).mkdir()
    for k in (1, 2):
        (folder / 'train' / f'{k}.jpg').write_bytes(inputs.images()[1][1])
    content = text if isinstance(text, bytes) else text.encode()
    (folder / 'annotations' / 'train.json').write_bytes(content)
    config = copy.deepcopy(_config())
    config.data_root = str(folder)
    resolve_custom(config)


def _image(case, folder):
    (folder / case[0]).write_bytes(case[1])
    reason = validate_image(folder / case[0])
    if reason is not None and (not reason or '\n' in reason or len(reason) > 400):
        raise BrokenError(f'a reason of no use: {reason!r}')
    return 'works' if reason is None else 'named'


def _upload(case, folder):
    sys.path.append(str(ROOT / 'projects' / 'gradio_demo'))
    from cluster_demo.uploads import read_upload

    (folder / case[0]).write_bytes(case[1])
    pixels, _ = read_upload(folder / case[0])
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.shape[2] == 3, pixels.shape


def _cloud(case, folder):
    from projects.point_cloud.point_cloud.data.readers import read_points

    (folder / case[0]).write_bytes(case[1])
    points = read_points(folder / case[0])
    assert points.dtype == np.float32, points.dtype
    assert points.shape[1] == 3, points.shape
    assert np.isfinite(points).all()


META = st.fixed_dictionaries(
    {}, optional={'time': inputs.JSON, 'config': inputs.JSON, 'dataset_meta': inputs.JSON}
)
OFFICIAL = st.tuples(
    inputs.WEIGHTS_CHANGES, META, st.booleans(), st.sampled_from((None, 'tiny', 'small'))
)
DATA = (ValueError, UserError)
TARGETS = {
    target.name: target
    for target in (
        Target('checkpoint: bytes', inputs.CHECKPOINTS, _load),
        Target('checkpoint: pickle', inputs.PICKLES, _load, share=2),
        Target('safetensors', inputs.files(inputs.safetensors), _load, needs='safetensors'),
        Target('converter', OFFICIAL, _official, share=0.5),
        Target('annotations: COCO', inputs.COCO, _coco, DATA, 0.5, 'mmdet'),
        Target('image: tools', inputs.files(inputs.images), _image, share=0.5),
        Target('image: demo', inputs.files(inputs.images), _upload, DATA, 0.5, 'mmpretrain'),
        Target('point cloud', inputs.files(inputs.clouds), _cloud, DATA),
    )
}


def fuzz(target, examples, start=0):
    """Run a target; return how often it ended how, and what broke by its message."""
    outcomes, broken = Counter(), {}

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(start)
    @given(target.inputs)
    def run(case):
        try:
            outcomes[judge(target, case)] += 1
        except BrokenError as error:
            outcomes['broken'] += 1
            broken.setdefault(str(error)[:160], case)

    run()
    return outcomes, broken


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--examples', type=int, default=10_000, help='inputs in all')
    parser.add_argument('--target', nargs='+', choices=list(TARGETS), help='default: all')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'fuzz.csv')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    chosen = [TARGETS[name] for name in args.target or TARGETS]
    rows, problems = [('target', 'inputs', 'works', 'broken', 'seconds')], {}
    for target in chosen:
        count = round(args.examples * target.share / sum(x.share for x in chosen))
        begin = time.process_time()
        found, broken = fuzz(target, max(1, count), args.seed)
        seconds = round(time.process_time() - begin, 1)
        rows.append((target.name, found.total(), found['works'], found['broken'], seconds))
        print(dict(zip(rows[0], rows[-1], strict=True)))
        problems |= broken
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open('w', newline='') as file:
        csv.writer(file).writerows(rows)
    for what, case in problems.items():
        print(f'{what}\n{case!r}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
