"""``tools/infer.py``: predict on images, print results and write pictures."""

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from coc_mm.cli.options import add_cfg_options, add_device, at_least, between, make_parser
from coc_mm.errors import UserError, explain, run_command
from coc_mm.utils.images import WRITABLE_SUFFIXES

_MAX_TABLES = 16  # of more images no tables are printed


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    description = 'Predict on images, print results, and write pictures or data.'
    parser = make_parser(description, 'images+', 'config', 'checkpoint')
    add = parser.add_argument
    add('--out-dir', help='where results go; default: ./work_dirs/CONFIG_NAME/infer')
    add(
        '--save',
        nargs='+',
        default=['vis'],
        choices=['vis', 'json', 'coco', 'csv', 'png'],
        help='what to write: pictures (vis; the default), predictions.json, predictions.csv, '
        'predictions.coco.json of detectors, index masks of segmentors (png)',
    )
    add('--batch-size', type=at_least(1), default=1, help='images at once; default: 1')
    add_device(parser)
    add('--topk', type=at_least(1), default=5, help='classification: classes to print; default: 5')
    share = between(0, 1, float)
    add('--score-thr', type=share, default=0.3, help='detection: least score shown; default: 0.3')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Predict on images, print results, and write pictures or data."""
    args = parse(argv)

    from mmengine.registry import DefaultScope
    from rich.console import Console

    from coc_mm.apis.config import load_config, merge_options
    from coc_mm.apis.infer import TASKS, find_device, load_model
    from coc_mm.apis.sources import find_sources

    config = load_config(args.config, args.cfg_options)
    merge_options(config, args.cfg_options)
    default_dir = os.path.join('work_dirs', Path(args.config).stem, 'infer')
    out_dir = Path(args.out_dir or config.get('out_dir') or default_dir)
    roots = {Path(x) if os.path.isdir(x) else Path(x).parent for x in args.images}
    if out_dir.exists() and out_dir.resolve() in {root.resolve() for root in roots}:
        raise UserError(f'--out-dir {out_dir} is the folder of the images; name another.')
    for kind, scope in (('coco', 'mmdet'), ('png', 'mmseg')):
        if kind in args.save and config.default_scope != scope:
            raise UserError(f'--save {kind} is for models of {scope}; take json or csv.')
    images = find_sources(args.images, leave=out_dir)
    device = find_device(args.device)
    # A run of another library may have left its scope in this process.
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        model = load_model(config, args.checkpoint, device, keep=args.cfg_options or ())
        task = TASKS[config.default_scope](model, topk=args.topk, score_thr=args.score_thr)
        failed = _predict_all(task, images, out_dir, args, Console(markup=False))
    if failed:
        listed = ', '.join(failed[:10]) + (', ...' if len(failed) > 10 else '')
        raise UserError(
            f'{len(failed)} of {len(images)} images could not be used: {listed} '
            '(the reasons are above).'
        )


def _predict_all(
    task: Any, images: Sequence[str], out_dir: Path, args: Namespace, console: Any
) -> list[str]:
    """Predict on all images; return the names of those that could not be used."""
    from rich.progress import Progress

    from coc_mm.apis.predictions import predict_each, write_predictions
    from coc_mm.apis.sources import read_sources

    failed: list[str] = []

    def skip(picture, error):
        message = explain(error)
        if message is None:
            raise error
        if len(images) == 1 and picture.video is None:
            raise UserError(f'image {picture.content}: {message}') from error
        console.print(f'skipped {picture.name}: {message}', style='red')
        failed.append(picture.name)

    predictions = []
    with Progress(console=console, transient=True) as progress, _Pictures(task, out_dir) as drawn:
        bar = progress.add_task('predicting', total=len(images) if len(images) > 1 else None)
        with suppress(KeyboardInterrupt) if images[-1].isdigit() else nullcontext():
            for found in predict_each(task, read_sources(images), args.batch_size, skip):
                if args.save != ['vis']:
                    predictions.append(found.prediction)
                target = drawn.draw(found) if 'vis' in args.save else None
                if len(images) <= _MAX_TABLES and found.picture.video is None:
                    title = str(found.picture.content)
                    table = found.prediction.to_table(title)
                    if not table.row_count:
                        scores = found.sample.pred_instances.scores
                        best = f'; the best has {scores.max():.3f}' if len(scores) else ''
                        table.caption = f'no object with a score of {args.score_thr} or more{best}'
                    console.print(table)
                    if target:
                        console.print(f'picture: {target}', highlight=False, soft_wrap=True)
                progress.advance(bar)
    kinds = [kind for kind in args.save if kind != 'vis']
    paths = [*drawn.videos, *(write_predictions(predictions, out_dir, kinds) if kinds else [])]
    for path in paths[:_MAX_TABLES]:
        console.print(f'written: {path}', highlight=False, soft_wrap=True)
    if len(images) > _MAX_TABLES:
        console.print(f'{len(images) - len(failed)} images; results are in {out_dir}')
    return failed


class _Pictures:
    """Draw what was found: a picture for each image, a video for each video."""

    def __init__(self, task: Any, out_dir: Path) -> None:
        self.task, self.out_dir = task, out_dir
        self.videos: dict[Path, Any] = {}

    def __enter__(self) -> '_Pictures':
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self.videos.values():
            writer.release()

    def draw(self, found: Any) -> Path:
        picture = found.picture
        name = picture.name if picture.video is None else f'{picture.video}.frame.png'
        # Other formats than the usual ones become PNG.
        writable = name.lower().endswith(WRITABLE_SUFFIXES)
        target = self.out_dir / (name if writable else f'{name}.png')
        target.parent.mkdir(parents=True, exist_ok=True)
        self.task.draw(found.shown, found.sample, str(target))
        if picture.video is None:
            return target
        import cv2

        pixels: Any = cv2.imread(str(target))
        target.unlink()
        path = self.out_dir / f'{picture.video}.mp4'
        if path not in self.videos:
            code, size = cv2.VideoWriter.fourcc(*'mp4v'), pixels.shape[1::-1]
            self.videos[path] = cv2.VideoWriter(str(path), code, picture.fps, size)
        self.videos[path].write(pixels)
        return path


main = partial(run_command, run)
