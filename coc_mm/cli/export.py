"""``tools/deployment/export.py``: write a trained model for other runtimes and check it."""

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from coc_mm.cli.options import add_cfg_options, add_shape, at_least, make_parser, need_packages
from coc_mm.errors import TRACEBACK_VARIABLE, UserError, run_command
from coc_mm.utils.atomic_io import atomic_write


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Write a trained model as ONNX or as a program of torch.export, after checking it against '
        'PyTorch on photographs.',
        *('config', 'checkpoint'),
    )
    add = parser.add_argument
    add('--format', required=True, choices=['onnx', 'torch-export'], help='what to write')
    add('--out', help='the file; default: ./work_dirs/CONFIG_NAME/CONFIG_NAME.onnx or .pt2')
    add('--images', help='check on the images of this folder; default: pictures of scikit-image')
    add_shape(
        parser,
        'height and width of the images, or both; classifiers take no other. '
        'Default: what the config tests with, 512 for detectors and segmentors',
    )
    add('--rounds', type=at_least(1), default=5, help='times that each side is timed; default: 5')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def _test_size(config: Any) -> tuple[int, int]:
    """Height and width that a classifier is tested with."""
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    for step in reversed(dataset.get('pipeline') or []):
        size = step.get('crop_size', step.get('scale'))
        if isinstance(size, int):
            return size, size
        if size and len(size) == 2:
            return (*size,) if 'crop_size' in step else tuple(size[::-1])
    return 224, 224


def _target(args: Namespace, suffix: str) -> Path:
    stem = Path(args.config).stem
    out = Path(args.out or Path('work_dirs') / stem / f'{stem}{suffix}')
    if out.is_dir():
        raise UserError(f'--out {out} is a folder; name a {suffix} file in it.')
    if out.suffix != suffix:
        raise UserError(f'--out {out}: --format {args.format} writes a {suffix} file; name one.')
    return out


def _load(args: Namespace) -> tuple[Any, str, tuple[int, int]]:
    from coc_mm.apis.config import load_config, merge_options
    from coc_mm.apis.export import MAX_SIZE, min_size
    from coc_mm.apis.infer import load_model
    from coc_mm.models.backbones import ContextCluster

    config = load_config(args.config, args.cfg_options)
    merge_options(config, args.cfg_options)
    model: Any = load_model(config, args.checkpoint)
    if not isinstance(getattr(model, 'backbone', None), ContextCluster):
        raise UserError(
            f'config {args.config} has no Context Cluster as its backbone; export works for those.'
        )
    scope = config.default_scope
    shape = args.shape or (_test_size(config) if scope == 'mmpretrain' else (512, 512))
    least = min_size(scope, model.backbone.folds)
    if min(shape) < least or max(shape) > MAX_SIZE:
        raise UserError(f'--shape: sides from {least} to {MAX_SIZE} can be exported, got {shape}.')
    return model, scope, shape


def run(argv: Sequence[str] | None = None) -> None:
    """Export, check and time a model."""
    args = parse(argv)

    from rich.console import Console

    from coc_mm.apis.export import SUFFIXES, DeployModel
    from coc_mm.apis.export_check import check, load_pictures, speed
    from coc_mm.apis.infer import TASKS

    out = _target(args, SUFFIXES[args.format])
    if args.format == 'onnx':
        need_packages('--format onnx', ('onnx', 'onnxruntime', 'onnxscript'))
    model, scope, shape = _load(args)
    deployable = DeployModel(model, scope)
    load = TASKS[scope](model).load if args.images else None
    pictures = load_pictures(args.images, deployable.channels, load)
    console = Console()
    with atomic_write(out, suffix=out.suffix) as part:
        console.print('tracing, which takes a minute or several ...')
        _write(args, model, deployable, shape, part, console)
        table, reason = check(model, scope, part, deployable.output_names, pictures, shape)
        console.print(table)
        if reason:
            raise UserError(
                f'what was exported gives something else than PyTorch: {reason}; '
                'nothing is written.'
            )
    for line in speed(model, scope, out, pictures, shape, args.rounds):
        console.print(line)
    console.print(f'written: {out}', markup=False, highlight=False, soft_wrap=True)


def _describe(model: Any, scope: str, shape: tuple[int, int]) -> list[dict[str, Any]]:
    import cv2
    import numpy as np

    from coc_mm.apis.infer import TASKS
    from coc_mm.apis.serving import describe_pipeline, preprocess

    task = TASKS[scope](model)
    steps = describe_pipeline(model, [task.load, *task.steps])
    picture = cv2.imencode('.png', np.zeros((600, 800, 3), np.uint8))[1].tobytes()
    if scope == 'mmpretrain' and preprocess(picture, steps)[0].shape[2:] != shape:
        raise UserError('a test pipeline of another size than --shape')
    return steps


def _write(
    args: Namespace, model: Any, deployable: Any, shape: tuple[int, int], path: Path, console: Any
) -> None:
    from coc_mm.apis.export import export_program, save_program

    meta = getattr(model, 'dataset_meta', getattr(model, '_dataset_meta', None)) or {}
    order = 'RGB, ' if deployable.channels == 3 else ''
    facts = dict(
        input=f'{order}0 to 255, float32, (batch, {deployable.channels}, height, width)',
        config=Path(args.config).name,
        classes=json.dumps(list(meta.get('classes') or [])),
    )
    if deployable.scope != 'mmdet':
        try:
            facts['preprocessing'] = json.dumps(_describe(model, deployable.scope, shape))
        except UserError as error:
            console.print(f'the file cannot be served by coc serve: it does not record {error}')
    try:
        save_program(export_program(deployable, shape), path, deployable.output_names, facts)
    except (UserError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # the tracers have no common class of errors
        if os.environ.get(TRACEBACK_VARIABLE, '0') != '0':
            raise
        reason = next((x.strip() for x in str(error).split('\n') if x.strip()), '')
        raise UserError(
            f'this model cannot be exported: {type(error).__name__}: {reason[:300]}\n'
            'Heads other than linear classifiers and Semantic FPN may use what cannot be traced '
            'with free sizes (COC_MM_TRACEBACK=1 shows where).'
        ) from None


main = partial(run_command, run)
