"""``tools/infer.py``: predict on images, print results and write pictures."""

import os
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from coc_mm.cli.options import add_cfg_options, add_device, at_least, between, make_parser
from coc_mm.errors import UserError, explain, run_command
from coc_mm.utils.images import WRITABLE_SUFFIXES, find_images

__all__ = ['main', 'parse', 'run']


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    description = 'Predict on an image, or on the images of a folder.'
    parser = make_parser(description, 'image', 'config', 'checkpoint')
    add = parser.add_argument
    add('--out-dir', help='where pictures go; default: ./work_dirs/CONFIG_NAME/infer')
    add_device(parser)
    add('--topk', type=at_least(1), default=5, help='classification: classes to print; default: 5')
    share = between(0, 1, float)
    add('--score-thr', type=share, default=0.3, help='detection: least score shown; default: 0.3')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Predict on images, print results and write pictures."""
    args = parse(argv)

    from mmengine.registry import DefaultScope
    from rich.console import Console

    from coc_mm.apis.config import load_config, merge_options
    from coc_mm.apis.infer import TASKS, find_device, load_model

    config = load_config(args.config, args.cfg_options)
    merge_options(config, args.cfg_options)
    default_dir = os.path.join('work_dirs', Path(args.config).stem, 'infer')
    out_dir = Path(args.out_dir or config.get('out_dir') or default_dir)
    root = Path(args.image) if Path(args.image).is_dir() else Path(args.image).parent
    if out_dir.exists() and out_dir.resolve() == root.resolve():
        raise UserError(f'--out-dir {out_dir} is the folder of the images; name another.')
    images = find_images(args.image, leave=out_dir)
    device = find_device(args.device)
    # A run of another library may have left its scope in this process.
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        model = load_model(config, args.checkpoint, device, keep=args.cfg_options or ())
        task = TASKS[config.default_scope](model, topk=args.topk, score_thr=args.score_thr)
        targets = {image: out_dir / image.relative_to(root) for image in images}
        failed = _predict_all(task, targets, Console(markup=False))
    if failed:
        listed = ', '.join(failed[:10]) + (', ...' if len(failed) > 10 else '')
        raise UserError(
            f'{len(failed)} of {len(images)} images could not be used: {listed} '
            '(the reasons are above).'
        )


def _predict_all(task: Any, targets: dict[Path, Path], console: Any) -> list[str]:
    """Predict on images and draw each; return the names of those that could not be used."""
    failed = []
    for image, target in targets.items():
        try:
            data, picture = task.read(str(image))
            sample = task.predict(data)
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            if len(targets) == 1:
                raise UserError(f'image {image}: {message}') from error
            console.print(f'skipped {image}: {message}', style='red')
            failed.append(image.name)
            continue
        # Other formats than the usual ones become PNG.
        if image.suffix.lower() not in WRITABLE_SUFFIXES:
            target = target.with_name(f'{image.name}.png')
        target.parent.mkdir(parents=True, exist_ok=True)
        task.draw(picture, sample, str(target))
        console.print(task.report(sample, title=str(image)))
        console.print(f'picture: {target}', highlight=False, soft_wrap=True)
    return failed


main = partial(run_command, run)
