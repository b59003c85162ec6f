"""``tools/analysis_tools/benchmark.py``: measure the speed and memory of a model."""

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from coc_mm.cli.options import add_cfg_options, add_device, add_shape, at_least, make_parser
from coc_mm.errors import UserError, run_command
from coc_mm.utils.atomic_io import atomic_write


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Measure throughput, latency and peak memory of a model on random images; of detectors '
        'backbone and neck, since the work of their heads depends on what is seen.',
        *('config', 'checkpoint?'),
    )
    add = parser.add_argument
    add('--batch-size', type=at_least(1), default=1, help='images at a time; default: 1')
    shapes = 'height and width, or both; default: 224, detectors 800 1280, segmentors 512'
    add_shape(parser, shapes, minimum=32)
    add_device(parser)
    add('--amp', action='store_true', help='mixed precision: float16 on GPU, bfloat16 on CPU')
    add('--compile', action='store_true', help='run it through torch.compile')
    add('--backend', help='backend of the operator; default: the fastest')
    add('--training', action='store_true', help='forward and backward pass, without an optimizer')
    add('--rounds', type=at_least(2), default=20, help='times it runs; default: 20')
    add('--json', metavar='FILE', help='also write the figures to FILE')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.json and (Path(args.json).is_dir() or not Path(args.json).absolute().parent.is_dir()):
        raise UserError(
            f'--json {args.json} cannot be written; name a file in a folder that exists.'
        )
    return args


def _build(args: Namespace, config: Any) -> Any:
    from coc_mm.apis.infer import load_model
    from coc_mm.models.layers import ContextClusterMixer
    from coc_mm.ops import functional

    model = load_model(config, args.checkpoint)
    if args.backend:
        mixers = [m for m in model.modules() if isinstance(m, ContextClusterMixer)]
        if args.backend not in functional._BACKENDS:
            known = ', '.join(sorted(functional._BACKENDS))
            raise UserError(f'--backend {args.backend}: choose one of {known}.')
        if not mixers:
            raise UserError(f'--backend: config {args.config} has no Context Cluster in it.')
        for mixer in mixers:
            mixer.backend = args.backend
    return model


def run(argv: Sequence[str] | None = None) -> None:
    """Measure a model, print a table and write the figures."""
    args = parse(argv)

    import torch
    from rich.console import Console

    from coc_mm.apis.benchmark import MEASURED, SHAPES, measure
    from coc_mm.apis.config import load_config, merge_options
    from coc_mm.apis.infer import find_device

    config = load_config(args.config, args.cfg_options)
    merge_options(config, args.cfg_options)
    scope = config.default_scope
    if scope not in SHAPES:
        raise UserError(f'this tool measures models of {", ".join(SHAPES)}, not of {scope!r}.')
    device = torch.device(find_device(args.device))
    shape = args.shape or SHAPES[scope]
    model = _build(args, config)
    try:
        channels = getattr(getattr(model, 'backbone', None), 'in_channels', 3)
        image = torch.randn(args.batch_size, channels, *shape, device=device)
        rest = (args.training, args.amp, args.compile, args.rounds)
        figures = measure(model.to(device), scope, image, *rest)
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
            raise UserError(
                f'not enough memory for --batch-size {args.batch_size} at this --shape; lower one '
                'of them.'
            ) from None
        if args.backend and args.backend in text.split('\n')[0]:
            raise UserError(f'--backend {args.backend}: {text}') from None
        raise
    facts = dict(
        config=Path(args.config).name,
        measured=MEASURED[scope],
        mode='training' if args.training else 'inference',
        shape=list(image.shape),
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
        with atomic_write(args.json) as file:
            file.write_text(json.dumps({**facts, **figures}, indent=2) + '\n')


def _table(facts: dict, figures: dict) -> Any:
    from rich.table import Table

    compiled = ', compiled' if facts['compiled'] else ''
    table = Table(
        *('', ''),
        title=f'{facts["config"]}, {facts["measured"]}, {facts["mode"]}',
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


main = partial(run_command, run)
