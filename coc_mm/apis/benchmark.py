"""Throughput, latency and memory of a model: what ``tools/analysis_tools/benchmark.py`` runs."""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.model import revert_sync_batchnorm
from rich.console import Console
from rich.table import Table

from coc_mm.apis.config import load_config, merge_options
from coc_mm.apis.infer import _usable_device, load_model
from coc_mm.apis.start import build_model
from coc_mm.cli.options import add_cfg_options
from coc_mm.errors import UserError
from coc_mm.models.backbones.context_cluster import MIN_SIZE
from coc_mm.models.layers import ContextClusterMixer
from coc_mm.ops import functional as interface

__all__ = ['measure', 'run_benchmark']

_SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 512)}
_PARTS = {'mmpretrain': 'whole model', 'mmdet': 'backbone and neck', 'mmseg': 'whole model'}
_WARM_UP = 3


def _parse(argv):
    parser = argparse.ArgumentParser(
        prog='benchmark.py',
        description='Measure throughput, latency and peak memory of a model on random images; of '
        'detectors backbone and neck, since the work of their heads depends on what is seen.',
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', nargs='?', help='the checkpoint file; default: no weights')
    parser.add_argument('--batch-size', type=int, default=1, help='images at a time; default: 1')
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        metavar='N',
        help='height and width, or both; default: 224, detectors 800 1280, segmentors 512',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1; default: cuda if there is one')
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on GPU, bfloat16 on CPU'
    )
    parser.add_argument('--compile', action='store_true', help='run it through torch.compile')
    parser.add_argument('--backend', help='backend of the operator; default: the fastest')
    parser.add_argument(
        '--training',
        action='store_true',
        help='forward and backward pass (of the mean square of the outputs), without an optimizer',
    )
    parser.add_argument('--rounds', type=int, default=20, help='times it runs; default: 20')
    parser.add_argument('--json', metavar='FILE', help='also write the figures to FILE')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f'argument --batch-size: at least 1, got {args.batch_size}')
    if args.rounds < 2:
        parser.error(f'argument --rounds: at least 2, got {args.rounds}')
    if args.shape and (len(args.shape) > 2 or min(args.shape) < MIN_SIZE):
        parser.error(f'argument --shape: one or two numbers, at least {MIN_SIZE}')
    args.shape = args.shape and tuple(args.shape * 2 if len(args.shape) == 1 else args.shape)
    return args


def _call(model, scope, image):
    """Run the part that is measured."""
    if scope == 'mmpretrain':
        return [model(image, mode='tensor')]
    if scope == 'mmdet':
        return list(model.extract_feat(image))
    if model.training:
        return [model(image, mode='tensor')]
    return [model.encode_decode(image, [dict(img_shape=tuple(image.shape[2:]))])]


class _Memory:
    """Peak memory of a process: of the GPU's allocator, or resident beyond what was before."""

    def __init__(self, device):
        self.device = device
        self.linux = Path('/proc/self/clear_refs').exists()

    def start(self) -> None:
        """Forget earlier peaks."""
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.linux:
            self.before = self._read('VmRSS')
            Path('/proc/self/clear_refs').write_text('5')

    def peak(self):
        """MiB, or None where the system does not tell."""
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return (self._read('VmHWM') - self.before) / 1024 if self.linux else None

    @staticmethod
    def _read(key):
        lines = Path('/proc/self/status').read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])


def measure(
    model: torch.nn.Module,
    scope: str,
    image: torch.Tensor,
    training: bool = False,
    amp: bool = False,
    compiled: bool = False,
    rounds: int = 20,
) -> dict:
    """Time a model.

    Args:
        model (nn.Module): On the device of ``image``.
        scope (str): 'mmpretrain', 'mmdet' or 'mmseg'.
        image (Tensor): (B, 3, H, W), as normalised.
        training (bool): Forward and backward pass. Defaults to False.
        amp (bool): Under autocast. Defaults to False.
        compiled (bool): Through ``torch.compile``. Defaults to False.
        rounds (int): Times it runs. Defaults to 20.

    Returns:
        dict: ``images_per_second`` (at the median), ``latency_ms`` (``p50 p90 p99``),
        ``peak_memory_mib`` (or None) and ``first_call_s``, which holds any compiling.
    """
    device = image.device
    model.train(training)
    dtype = torch.float16 if device.type == 'cuda' else torch.bfloat16
    run = torch.compile(_call) if compiled else _call

    def step() -> None:
        with torch.set_grad_enabled(training), torch.autocast(device.type, dtype, enabled=amp):
            outs = run(model, scope, image)
        if training:
            sum(out.float().square().mean() for out in outs).backward()
            model.zero_grad(set_to_none=True)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    memory = _Memory(device)
    memory.start()
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    for _ in range(_WARM_UP - 1):
        step()
    if device.type == 'cuda':  # a compiler's own memory is not the model's
        memory.start()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    points = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    half, most, worst = torch.tensor(seconds, dtype=torch.float64).quantile(points).tolist()
    peak = memory.peak()
    return dict(
        images_per_second=round(len(image) / half, 3),
        latency_ms=dict(
            p50=round(1000 * half, 3), p90=round(1000 * most, 3), p99=round(1000 * worst, 3)
        ),
        peak_memory_mib=None if peak is None else round(peak, 1),
        first_call_s=round(first, 3),
    )


def _build(args, config, device):
    model = load_model(config, args.checkpoint) if args.checkpoint else build_model(config)
    mixers = [m for m in model.modules() if isinstance(m, ContextClusterMixer)]
    if args.backend:
        known = sorted(interface._BACKENDS)
        if args.backend not in known:
            raise UserError(f'--backend {args.backend}: choose one of {", ".join(known)}.')
        if not mixers:
            raise UserError(f'--backend: config {args.config} has no Context Cluster in it.')
        for mixer in mixers:
            mixer.backend = args.backend
    return revert_sync_batchnorm(model).to(device)


@contextlib.contextmanager
def _explained(args):
    """Turn what a device or a backend cannot do into a message."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f'not enough memory on the device for --batch-size {args.batch_size} at this --shape; '
            'lower one of them.'
        ) from None
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text:
            raise UserError('not enough memory; lower --batch-size or --shape.') from None
        if args.backend and args.backend in text.split('\n')[0]:
            raise UserError(f'--backend {args.backend}: {text}') from None
        raise


def _check_json(path):
    if path is None:
        return
    folder = Path(path).absolute().parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f'--json {path} cannot be written; name a file in a folder that exists.')


def run_benchmark(argv: Sequence[str] | None = None) -> None:
    """Measure a model and print a table, as ``tools/analysis_tools/benchmark.py`` does.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Raises:
        UserError: The arguments or files cannot be used, or the device is too small.
        CheckpointError: The checkpoint cannot be read.
    """
    args = _parse(argv)
    _check_json(args.json)
    config = load_config(args.config, args.cfg_options)
    merge_options(config, args.cfg_options)
    scope = config.default_scope
    if scope not in _SHAPES:
        raise UserError(f'this tool measures models of {", ".join(_SHAPES)}, not of {scope!r}.')
    device = torch.device(_usable_device(args.device))
    shape = args.shape or _SHAPES[scope]
    with _explained(args):
        model = _build(args, config, device)
        image = torch.randn(args.batch_size, 3, *shape, device=device)
        figures = measure(
            *(model, scope, image, args.training, args.amp, args.compile, args.rounds)
        )
    facts = dict(
        config=Path(args.config).name,
        measured=_PARTS[scope],
        mode='training' if args.training else 'inference',
        shape=[args.batch_size, 3, *shape],
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        dtype=('float16' if device.type == 'cuda' else 'bfloat16') if args.amp else 'float32',
        compiled=args.compile,
        backend=args.backend or os.environ.get('COC_MM_BACKEND') or 'default',
        rounds=args.rounds,
    )
    Console().print(_table(facts, figures))
    if args.json:
        part = Path(args.json).with_name(f'.{Path(args.json).name}.part')
        part.write_text(json.dumps({**facts, **figures}, indent=2) + '\n')
        os.replace(part, args.json)


def _table(facts, figures):
    title = f'{facts["config"]}, {facts["measured"]}, {facts["mode"]}'
    compiled = ', compiled' if facts['compiled'] else ''
    table = Table(
        *('', ''),
        title=title,
        show_header=False,
        caption=f'{"x".join(map(str, facts["shape"]))}, {facts["dtype"]}{compiled}, '
        f'{facts["device"]}, {facts["threads"]} threads, torch {facts["torch"]}, '
        f'{facts["rounds"]} rounds',
    )
    peak = figures['peak_memory_mib']
    table.add_row('throughput', f'{figures["images_per_second"]:.1f} images/s')
    for name, value in figures['latency_ms'].items():
        table.add_row(f'latency {name}', f'{value:.1f} ms')
    table.add_row('peak memory', 'not told by this system' if peak is None else f'{peak:.0f} MiB')
    table.add_row('first call', f'{figures["first_call_s"]:.1f} s')
    return table
