"""Load a trained model and predict on images: what ``tools/infer.py`` runs."""

import os
import re
import warnings
from argparse import Namespace
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from rich.console import Console
from torch import nn

from coc_mm.apis.config import load_config, merge_options
from coc_mm.apis.start import check_weights, is_local
from coc_mm.apis.tasks import TASKS
from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of, use_safe_loading
from coc_mm.cli.options import add_cfg_options, add_device, at_least, between, make_parser
from coc_mm.errors import UserError, explain
from coc_mm.utils.image_checks import validate_image

__all__ = ['find_images', 'load_model', 'run_infer']

_WRITABLE = ('.jpg', '.jpeg', '.png', '.bmp')
_SUFFIXES = (*_WRITABLE, '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.gif')


def find_images(path: str) -> list[Path]:
    """List the images that are meant by a file or a folder.

    Args:
        path (str): An image file, or a folder whose images are taken by their
            suffix, without those of its sub-folders.

    Returns:
        list[Path]: Sorted; one file is returned whatever its suffix.

    Raises:
        UserError: There is nothing, or no image in the folder, or the file cannot
            be decoded.
    """
    place = Path(path)
    if place.is_dir():
        found = sorted(x for x in place.iterdir() if x.suffix.lower() in _SUFFIXES)
        if not found:
            raise UserError(
                f'folder {path} holds no images ({", ".join(_SUFFIXES)}); name the folder '
                'that holds them itself.'
            )
        return found
    reason = validate_image(place)
    if reason:
        raise UserError(f'image {path} {reason}; name an image file, or a folder of them.')
    return [place]


def _usable_device(name: str | None) -> str:
    name = name or get_device()
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split('\n')[0]
        raise UserError(f'--device {name} cannot be used here ({reason}); try cpu.') from None
    return name


def load_model(config: Config, checkpoint: str, device: str = 'cpu') -> nn.Module:
    """Build the model of a config with the weights of a checkpoint, ready to predict.

    The library's own function builds it, so that the library's inference functions
    take it. Class names come from the checkpoint, else from the config's test
    dataset; without either, classes are numbered.

    Args:
        config (Config): Its ``default_scope`` is mmpretrain, mmdet or mmseg.
        checkpoint (str): A local file or a URL.
        device (str): Where to run. Defaults to ``'cpu'``.

    Returns:
        nn.Module: In evaluation mode, with ``dataset_meta`` (mmpretrain:
        ``_dataset_meta``) and the config.

    Raises:
        UserError: The library is none of the three, or the checkpoint is of another
            model.
        CheckpointError: The file cannot be read.
    """
    scope = config.get('default_scope')
    if scope not in TASKS:
        raise UserError(
            f'prediction works for configs of {", ".join(TASKS)}, not for default_scope {scope!r}.'
        )
    if is_local(checkpoint):
        content = load_checkpoint_safely(checkpoint)
    else:
        from mmengine.runner import CheckpointLoader

        use_safe_loading()
        content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu')
    meta = content.get('meta') or {}
    config = deepcopy(config)
    _set_custom_classes(config, meta)
    with warnings.catch_warnings(record=True) as caught:
        model = TASKS[scope].build(deepcopy(config))
    for warning in caught:  # class names and colors follow below
        if not re.search('checkpoint is None|palette', str(warning.message)):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    check_weights(model, content, checkpoint, strict=True)
    model.load_state_dict(state_dict_of(content, checkpoint), strict=False)
    TASKS[scope].set_classes(model, meta, config)
    return model.to(device).eval()


def _set_custom_classes(config: Config, meta: dict) -> None:
    """Give a config for own data the classes of the checkpoint, its data being elsewhere."""
    classes = (meta.get('dataset_meta') or {}).get('classes')
    if config.get('custom_data') is not None and classes:
        from coc_mm.datasets import set_classes

        set_classes(config, classes)


def _target(out_dir: Path, image: Path) -> Path:
    """Name the picture of an image; other formats than the usual ones become PNG."""
    name = image.name if image.suffix.lower() in _WRITABLE else f'{image.name}.png'
    return out_dir / name


def parse_infer(argv: Sequence[str] | None = None) -> Namespace:
    """Parse ``image config checkpoint out_dir device topk score_thr cfg_options``."""
    parser = make_parser(
        'infer.py',
        'Predict on an image, or on the images of a folder.',
        *('image', 'config', 'checkpoint'),
    )
    parser.add_argument(
        '--out-dir', help='where pictures go; default: ./work_dirs/CONFIG_NAME/infer'
    )
    parser.add_argument(
        '--topk',
        type=at_least(1),
        default=5,
        help='classification: classes to print; default: 5',
    )
    parser.add_argument(
        '--score-thr',
        type=between(0, 1, float),
        default=0.3,
        help='detection: least score shown; default: 0.3',
    )
    add_device(parser)
    add_cfg_options(parser)
    return parser.parse_args(argv)


def run_infer(argv: Sequence[str] | None = None) -> None:
    """Predict on images, print results and write pictures, as ``tools/infer.py`` does.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Raises:
        UserError: The arguments, the config, the checkpoint or an image cannot be
            used; images of a folder that can be are done first.
    """
    args = parse_infer(argv)
    images = find_images(args.image)
    config = load_config(args.config, args.cfg_options)
    merge_options(config, args.cfg_options)
    default_dir = os.path.join('work_dirs', Path(args.config).stem, 'infer')
    out_dir = Path(args.out_dir or config.get('out_dir') or default_dir)
    if out_dir.exists() and out_dir.resolve() == images[0].parent.resolve():
        raise UserError(
            f'--out-dir {out_dir} is the folder of the images; pictures would replace them.'
        )
    device = _usable_device(args.device)
    use_safe_loading()
    console = Console()
    # A run of another library may have left its scope in this process.
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        model = load_model(config, args.checkpoint, device)
        task = TASKS[config.default_scope](model, topk=args.topk, score_thr=args.score_thr)
        failed = _predict_all(task, images, out_dir, console)
    if failed:
        listed = ', '.join(failed[:10]) + (', ...' if len(failed) > 10 else '')
        raise UserError(
            f'{len(failed)} of {len(images)} images could not be used: {listed} '
            '(the reasons are above).'
        )


def _predict_all(task: Any, images: Sequence[Path], out_dir: Path, console: Console) -> list[str]:
    """Predict on all images; return the names of those that could not be used."""
    failed = []
    for image in images:
        try:
            _predict_one(task, image, _target(out_dir, image), console)
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            if len(images) == 1:
                raise UserError(f'image {image}: {message}') from error
            console.print(f'skipped {image}: {message}', style='red', markup=False)
            failed.append(image.name)
    return failed


def _predict_one(task: Any, image: Path, target: Path, console: Console) -> None:
    reason = validate_image(image)
    pixels = None if reason else mmcv.imread(str(image), channel_order='rgb')
    if pixels is None:
        raise UserError(reason or 'is not an image in a format that can be read')
    sample = task.predict(str(image))
    target.parent.mkdir(parents=True, exist_ok=True)
    task.draw(pixels, sample, str(target))
    console.print(task.report(sample, title=str(image)))
    console.print(f'picture: {target}', markup=False, highlight=False, soft_wrap=True)
