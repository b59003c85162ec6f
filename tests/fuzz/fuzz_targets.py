"""What is fuzzed, and what must hold: it works, or one documented error with one clear message."""

import copy
import functools
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_data_inputs as data_inputs
import fuzz_inputs as inputs
import golden
import numpy as np
import torch
from hypothesis import strategies as st
from mmengine.config import Config
from PIL import Image

from coc_mm.checkpoints.convert import convert_official
from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of
from coc_mm.checkpoints.official import read_official
from coc_mm.checkpoints.publish import publish
from coc_mm.checkpoints.safe_pickle import load_plain_pickle
from coc_mm.datasets import resolve_custom
from coc_mm.errors import CheckpointError, UserError
from coc_mm.utils.image_checks import validate_image

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20  # of computing that one input may take; the clock of a busy machine says little
LONGEST = 3000  # letters of a message
CONFIGS = dict(
    coco='detection/mask-rcnn_coc-s-c4_fpn_1xb2-12e_custom.py',
    folders='classification/coc-small_1xb64-50e_custom.py',
    masks='segmentation/fpn_coc-s-c4_1xb4-50e-512x512_custom.py',
)

# What a reader of files has no business with; seen by Python's own audit events.
_FORBIDDEN = (
    'os.system',
    'os.exec',
    'os.fork',
    'os.posix_spawn',
    'subprocess.',
    'socket.',
    'ctypes',
)
_CHANGES = ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.link', 'os.symlink', 'os.chmod')


class _Watch:
    """Notes what is done outside of a folder while it is on."""

    def __init__(self):
        self.folder, self.seen = None, []
        sys.addaudithook(self._hear)

    def _hear(self, event, args):
        folder = self.folder
        if folder is None:
            return
        if event.startswith(_FORBIDDEN) and event not in ('ctypes.dlsym', 'ctypes.dlopen'):
            self.seen.append(f'{event} {str(args)[:80]}')
        elif event in _CHANGES or (event == 'open' and _writes(args)):
            # Names relative to an open folder come from within what is removed.
            path = str(args[0])
            if os.path.isabs(path) and not _below(path, folder):
                self.seen.append(f'{event} {path[:80]}')


def _below(path, folder):
    path = os.path.realpath(path)
    return path == folder or path.startswith(folder + os.sep)


def _writes(args):
    path, mode, flags = args
    wants = mode and set(mode) & set('wax+')
    return isinstance(path, str) and bool(wants or (flags or 0) & (os.O_WRONLY | os.O_RDWR))


@functools.cache
def watch():
    for kind in CONFIGS:  # mmengine makes a folder for each that it reads
        _config(kind)
    return _Watch()


class BrokenError(AssertionError):
    """The promise is broken; the text says how."""


@dataclass(frozen=True)
class Target:
    """Something that reads a file of others.

    Args:
        name (str): For the table.
        inputs (SearchStrategy): Of Hypothesis.
        use (Callable): Takes an input and a folder of its own.
        errors (tuple): The documented exceptions.
        share (float): Of the inputs, relative to the other targets. Defaults to 1.
        leaves (tuple[str, ...]): What may lie in the folder afterwards, besides inputs.
    """

    name: str
    inputs: st.SearchStrategy
    use: Callable
    errors: tuple = (CheckpointError, UserError)
    share: float = 1


def judge(target: Target, given, folder: Path) -> tuple[str, float]:
    """Use an input; return the outcome and the seconds it took.

    Raises:
        BrokenError: Another exception, a message of no use, code that was run, something
            written elsewhere, or too much time.
    """
    start = time.process_time()
    eye = watch()
    eye.folder, eye.seen = os.path.realpath(folder), []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            outcome = target.use(given, folder) or 'works'
    except target.errors as error:
        outcome, text = type(error).__name__, str(error)
        if not text.strip() or len(text) > LONGEST or 'Traceback' in text:
            raise BrokenError(f'{target.name}: a message of no use: {text[:300]!r}') from error
    except BrokenError:
        raise
    except BaseException as error:
        raise BrokenError(f'{target.name}: {type(error).__name__}: {error}') from error
    finally:
        eye.folder = None
    seconds = time.process_time() - start
    if eye.seen:
        raise BrokenError(f'{target.name}: {eye.seen[0]}')
    if any(folder.rglob('RUN*')):
        raise BrokenError(f'{target.name}: code was run')
    if seconds > SECONDS:
        raise BrokenError(f'{target.name}: {seconds:.0f} s')
    return outcome, seconds


def in_folder(target: Target, given) -> tuple[str, float]:
    """Judge in a new folder, which is removed."""
    folder = Path(tempfile.mkdtemp(prefix='fuzz_'))
    try:
        return judge(target, given, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def peak_megabytes() -> float:
    """Most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _load(content, folder, name='x.pth'):
    path = folder / name
    path.write_bytes(content)
    checkpoint = load_checkpoint_safely(path)
    _look(checkpoint)
    for value in state_dict_of(checkpoint, str(path)).values():
        value.clone() if value.numel() < 1 << 20 else None


def _look(checkpoint):
    """Touch what was read, so that a wrong layout of memory shows."""
    left, looked = [checkpoint], 0
    while left and looked < 10_000:
        node = left.pop()
        looked += 1
        if isinstance(node, dict):
            left += [*node.keys(), *node.values()]
        elif isinstance(node, (list, tuple)):
            left += node
        elif isinstance(node, np.ndarray):
            node.tobytes() if node.dtype.hasobject else node.copy()
        elif isinstance(node, torch.Tensor) and node.numel() < 1 << 20:
            node.clone()


def _plain_pickle(content, folder):
    (folder / 'x.pkl').write_bytes(content)
    with open(folder / 'x.pkl', 'rb') as file:
        _look(load_plain_pickle(file))


@functools.cache
def _shapes(name):
    return json.loads((golden.FOLDER / 'keys' / f'{name}.json').read_text())


def _official(given, folder):
    name, changes, meta, options = given
    weights = inputs.changed_weights(_shapes(name), changes)
    path = folder / 'x.pth'
    torch.save(dict(state_dict=weights, meta=meta), path)
    official = read_official(str(path), ema=options[0])
    official.arch(options[1])
    official.proposals(options[2])
    official.denominator(options[3])
    try:
        convert_official(official.weights, official.task)
    except ValueError as error:  # documented; the tool says the same after the file's name
        raise UserError(str(error)) from None


OFFICIAL = st.tuples(
    st.sampled_from(('coc_tiny', 'coc_small')),
    inputs.WEIGHTS_CHANGES,
    st.none() | inputs.META,
    st.tuples(
        st.booleans(),
        st.sampled_from((None, 'tiny', 'small')),
        st.sampled_from((None, 2)),
        st.sampled_from((None, 'count')),
    ),
)


def _publish(given, folder):
    changes, meta, suffix = given
    weights = inputs.changed_weights({'a.weight': (2, 3), 'a.bias': (2,), 'b': ()}, changes)
    torch.save(dict(state_dict=weights, meta=meta), folder / 'x.pth')
    try:
        path = publish(str(folder / 'x.pth'), str(folder / f'out{suffix}'))
    except CheckpointError:
        if sorted(os.listdir(folder)) != ['x.pth']:
            raise BrokenError('a part of a file is left') from None
        raise
    load_checkpoint_safely(path)


PUBLISH = st.tuples(
    inputs.WEIGHTS_CHANGES, st.none() | inputs.META, st.sampled_from(('.pth', '.safetensors'))
)


@functools.cache
def _config(kind):
    return Config.fromfile(ROOT / 'configs' / CONFIGS[kind])


@functools.cache
def _jpeg():
    return data_inputs.images()[1]


def _coco(text, folder):
    (folder / 'annotations').mkdir()
    (folder / 'train').mkdir()
    for k in (1, 2):
        (folder / 'train' / f'{k}.jpg').write_bytes(_jpeg())
    content = text if isinstance(text, bytes) else text.encode()
    (folder / 'annotations' / 'train.json').write_bytes(content)
    config = copy.deepcopy(_config('coco'))
    config.data_root = str(folder)
    resolve_custom(config)


def _tree(given, folder):
    kind, entries = given
    for names, what in entries:
        path = folder.joinpath(*names)
        if not _below(os.path.normpath(path.parent), str(folder)) or path == folder:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if what in ('image', 'text', 'empty'):
                content = dict(image=_jpeg(), text=b'cat\ndog\n', empty=b'')[what]
                path.write_bytes(content)
            elif what == 'link':
                path.symlink_to(folder / 'nowhere')
            else:
                mask = np.arange(16, dtype=np.uint16 if what == 'deep mask' else np.uint8)
                mask = np.tile(mask * (99 if what == 'deep mask' else 1), (4, 1))
                shown = np.repeat(mask[..., None], 3, 2) if what == 'colors' else mask
                Image.fromarray(shown).save(path, 'PNG')
        except OSError:  # a name that this file system does not take, or a file in the way
            continue
    config = copy.deepcopy(_config(kind))
    config.data_root = str(folder)
    resolve_custom(config)


# Sound trees, so that some of those with more in them are sound, too.
_SOUND = dict(
    folders=[([name, f'{k}.jpg'], 'image') for name in ('cat', 'dog') for k in range(3)],
    masks=[
        ([folder, f'{k}.png'], what)
        for folder, what in (('images', 'image'), ('masks', 'mask'))
        for k in range(3)
    ],
    coco=[],
)
TREES = st.builds(
    lambda kind, sound, tree: (kind, [*(_SOUND[kind] if sound else ()), *tree]),
    st.sampled_from(('folders', 'masks', 'coco')),
    st.booleans(),
    data_inputs.TREE,
)


def _why(content, folder):
    (folder / 'x.png').write_bytes(content)
    reason = validate_image(folder / 'x.png')
    if reason is not None and (not reason or '\n' in reason or len(reason) > 400):
        raise BrokenError(f'a reason of no use: {reason!r}')
    return 'works' if reason is None else 'named'


def _upload(content, folder):
    sys.path.insert(0, str(ROOT / 'projects' / 'gradio_demo'))
    try:
        from cluster_demo.uploads import read_upload
    finally:
        sys.path.pop(0)
    (folder / 'x').write_bytes(content)
    pixels, _ = read_upload(folder / 'x')
    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        raise BrokenError(f'{pixels.shape} of {pixels.dtype}')


def _cloud(given, folder):
    from projects.point_cloud.point_cloud.data.readers import read_points

    suffix, content = given
    (folder / f'x{suffix}').write_bytes(content)
    points = read_points(folder / f'x{suffix}')
    if points.dtype != np.float32 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise BrokenError(f'{points.shape} of {points.dtype}')


def _h5(content, folder):
    from projects.point_cloud.point_cloud.data.h5 import read_h5

    (folder / 'x.h5').write_bytes(content)
    read_h5(folder / 'x.h5')


#: By name. A target that cannot be used here is left out by its module's import error.
TARGETS = {
    target.name: target
    for target in (
        Target('checkpoint: bytes', inputs.CHECKPOINT_BYTES, _load),
        Target('checkpoint: members', inputs.CHECKPOINT_MEMBERS, _load),
        Target('checkpoint: pickle', inputs.CHECKPOINT_PICKLES, _load, share=2),
        Target(
            'checkpoint: safetensors',
            inputs.SAFETENSORS,
            functools.partial(_load, name='x.safetensors'),
        ),
        Target('converter: weights', OFFICIAL, _official, share=0.3),
        Target('publisher: weights', PUBLISH, _publish),
        Target('annotations: pickle', inputs.PICKLES, _plain_pickle, (ValueError,)),
        Target('annotations: COCO', data_inputs.COCO, _coco, (ValueError, UserError), share=0.5),
        Target('folders', TREES, _tree, (ValueError, UserError), share=0.5),
        Target('image: tools', data_inputs.IMAGES, _why, (UserError,), share=0.5),
        Target('image: demo', data_inputs.IMAGES, _upload, (UserError,), share=0.5),
        Target('point cloud', data_inputs.CLOUDS, _cloud, (ValueError, UserError)),
        Target('point cloud: HDF5', data_inputs.H5, _h5, (ValueError, UserError), share=0.5),
    )
}
