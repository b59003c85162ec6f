"""``tools/visualization/clusters.py``: draw the clusters of images."""

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from coc_mm.cli.options import add_device, between, make_parser
from coc_mm.errors import UserError, run_command

_MAX_ROWS = 12  # of the sheet that shows all images of a folder


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Draw which cluster every point of an image belongs to. Written are, for each image, a '
        'row over the stages, a grid of all heads of each block asked for and, with --head or '
        '--all, each head by itself.',
        'image',
    )
    add = parser.add_argument
    add('model', metavar='config', help='the config file, or the name of a model')
    add('checkpoint', nargs='?', help='the checkpoint file; left out, the model is untrained')
    add('--stage', type=int, help='stage, 0 to 3; default: all')
    add('--block', type=int, help='block, from 0, or negative from the end; default: -1')
    add('--head', type=int, help='head of the block, from 0; default: all')
    add('--all', action='store_true', help='every block and head, each head in its own file')
    share = between(0, 1, float)
    add('--alpha', type=share, default=0.55, help='0: the image, 1: flat colors; default: 0.55')
    add('--centers', '--centres', action='store_true', help='mark the centers, too')
    add('--size', type=between(32, 4096), help="longer side of the network's input, in pixels")
    view = 'as the official script: the whole image squashed to 224 x 224 for the network'
    add('--official-view', action='store_true', help=view)
    height = between(32, 2048)
    add('--height', type=height, default=256, help='of pictures on a sheet; default: 256')
    add('--out-dir', help='where pictures go; default: ./work_dirs/CONFIG_NAME/clusters')
    add_device(parser)
    gif = 'checkpoints of one training run, or its folder: show how the clusters form'
    add('--gif', nargs='+', metavar='CKPT', help=gif)
    args = parser.parse_args(argv)
    if args.all and not (args.block is None and args.head is None):
        parser.error('argument --all: leave out --block and --head, or --all')
    if args.official_view:
        if args.size is not None:
            parser.error('argument --official-view: leave out --size')
        args.size = (224, 224)
    if args.block is None and not args.all:
        args.block = -1
    return args


def _find_checkpoints(paths: Sequence[str]) -> list[Path]:
    """List checkpoints; those of a folder in the order of their numbers."""
    found = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = [x for x in path.glob('*.pth') if not x.name.startswith('best_')]
            inside.sort(key=lambda x: [int(n) for n in re.findall(r'\d+', x.stem)])
        if not inside:
            raise UserError(f'--gif {path}: the folder holds no checkpoints (.pth).')
        found += inside
    return found


def _read(path: Path, load: Any) -> tuple[Any, Any]:
    """Read an image as the config's loader does: the picture of it, and what was loaded."""
    from coc_mm.utils.images import read_picture

    try:
        data, picture = read_picture(path, load)
        return picture, data['img']
    except UserError as error:
        raise UserError(f'image {path} {error}.') from None


def _names(images: Sequence[Path], folder: Path) -> dict[Path, str]:
    """What the pictures of each image are called: its stem, its name, or that with folders."""
    names = {path: path.stem for path in images}
    for longer in (lambda x: x.name, lambda x: '_'.join(x.relative_to(folder).parts)):
        count = Counter(names.values())
        names |= {path: longer(path) for path, name in names.items() if count[name] > 1}
    return names


def _build_writer(args: Namespace, checkpoints: Sequence[Path], out_dir: Path) -> Any:
    """Load the model and see that it has what is asked for, before anything is drawn."""
    import torch

    from coc_mm.apis.config import load_config
    from coc_mm.apis.infer import find_device, load_model
    from coc_mm.checkpoints.load import check_weights, load_checkpoint_safely
    from coc_mm.visualization.figures import FigureWriter
    from coc_mm.visualization.inspector import ClusterInspector
    from coc_mm.visualization.maps import record_clusters

    checkpoint = args.checkpoint or (str(checkpoints[-1]) if checkpoints else None)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # an untrained model gives the same picture every time
        config = load_config(args.model)
        model = load_model(config, checkpoint, find_device(args.device))
    try:
        inspector = ClusterInspector(model, config, size=args.size)
        with record_clusters(model, args.stage, args.block, args.head):
            pass
    except ValueError as error:
        raise UserError(f'{args.model}: {error}.') from None
    for path in checkpoints:
        check_weights(model, load_checkpoint_safely(path), str(path), strict=True)
    prefix = '' if checkpoint else 'untrained · '
    return FigureWriter(inspector, out_dir, args.alpha, args.height, args.centers, prefix)


def run(argv: Sequence[str] | None = None) -> None:
    """Draw the clusters of images."""
    args = parse(argv)

    from coc_mm.utils.images import find_images
    from coc_mm.visualization.sheets import contact_sheet, save_picture

    checkpoints = _find_checkpoints(args.gif or [])
    out_dir = Path(args.out_dir or Path('work_dirs') / Path(args.model).stem / 'clusters')
    images = find_images(args.image, leave=out_dir)
    writer = _build_writer(args, checkpoints, out_dir)
    failed, moving = [], {}
    rows: list = []
    for path, name in _names(images, Path(args.image)).items():
        try:
            image, loaded = _read(path, writer.inspector.load)
            inspection = writer.inspector(image, args.stage, args.block, args.head, loaded)
        except (UserError, ValueError) as error:
            if len(images) == 1:
                raise UserError(str(error)) from error
            print(f'skipped: {error}')
            failed.append(path.name)
            continue
        print(f'{path}: {writer.caption(inspection)}')
        written = []
        if args.stage is None:
            row = writer.row(inspection)
            rows += [row] if len(rows) < _MAX_ROWS else []
            written.append(save_picture(out_dir / f'{name}_stages.png', contact_sheet([row])))
        if args.head is None:
            written += writer.write_grids(name, inspection)
        if args.head is not None or args.all:
            written += writer.write_heads(name, inspection)
        for file in written:
            print(f'  {file}')
        moving[name] = path
    if len(rows) > 1:
        print(f'all images: {save_picture(out_dir / "stages.png", contact_sheet(rows))}')
    for name, path in moving.items() if checkpoints else ():  # last, as it replaces the weights
        chosen = (args.stage, args.block, args.head)
        image, loaded = _read(path, writer.inspector.load)
        gif = writer.write_gif(name, image, checkpoints, *chosen, loaded=loaded)
        print(f'how the clusters form: {gif}')
    if failed:
        raise UserError(
            f'{len(failed)} of {len(images)} images could not be used: {", ".join(failed[:10])} '
            '(the reasons are above).'
        )


main = partial(run_command, run)
