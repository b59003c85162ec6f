"""Draw the clusters of images: what ``tools/visualization/clusters.py`` runs."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from coc_mm.apis.config import load_config
from coc_mm.apis.infer import find_device, load_model
from coc_mm.checkpoints.load import check_weights, load_checkpoint_safely, state_dict_of
from coc_mm.errors import UserError
from coc_mm.utils.images import find_images, read_image, to_picture
from coc_mm.visualization.drawing import draw_clusters
from coc_mm.visualization.inspector import ClusterInspector, Inspection
from coc_mm.visualization.maps import ClusterMaps, record_clusters
from coc_mm.visualization.sheets import (
    contact_sheet,
    fit,
    head_grid,
    save_gif,
    save_picture,
    stage_row,
)

__all__ = ['parse_clusters', 'run_clusters']

_MAX_ROWS = 12  # of the sheet that shows all images of a folder
_MIN_SIDE = 448  # of a single picture; smaller images are enlarged to it


def parse_clusters(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of ``tools/visualization/clusters.py``.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Returns:
        argparse.Namespace: ``image model checkpoint stage block head all alpha centers
        size height out_dir device gif``.

    Raises:
        SystemExit: With status 2 and the usage on stderr.
    """
    parser = argparse.ArgumentParser(
        prog='clusters.py',
        description='Draw which cluster every point of an image belongs to. Written are, for '
        'each image, a row over the stages, a grid of all heads of each block asked for and, '
        'with --head or --all, each head by itself.',
    )
    parser.add_argument('image', help='an image file, or a folder of them')
    parser.add_argument('model', metavar='config', help='the config file, or the name of a model')
    parser.add_argument(
        'checkpoint', nargs='?', help='the checkpoint file; left out, the model is untrained'
    )
    parser.add_argument('--stage', type=int, help='stage, 0 to 3; default: all')
    parser.add_argument(
        '--block',
        type=int,
        help='block of the stage, from 0, or negative from the end; default: -1',
    )
    parser.add_argument('--head', type=int, help='head of the block, from 0; default: all')
    parser.add_argument(
        '--all', action='store_true', help='every block and head, each head in a file of its own'
    )
    parser.add_argument(
        '--alpha', type=float, default=0.55, help='0: the image, 1: flat colors; default: 0.55'
    )
    parser.add_argument('--centers', action='store_true', help='mark the centers, too')
    parser.add_argument(
        '--size',
        type=int,
        help="longer side of the network's input, in pixels: more are more points to cluster; "
        "default: what the config's test pipeline makes of an image",
    )
    parser.add_argument(
        '--height', type=int, default=256, help='of pictures on a sheet, in pixels; default: 256'
    )
    parser.add_argument(
        '--out-dir', help='where pictures go; default: ./work_dirs/CONFIG_NAME/clusters'
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1; default: cuda if there is one')
    parser.add_argument(
        '--gif',
        nargs='+',
        metavar='CKPT',
        help='checkpoints of one training run, or its folder: show how the clusters form, one '
        'frame each',
    )
    args = parser.parse_args(argv)
    if not 0 <= args.alpha <= 1:
        parser.error(f'argument --alpha: between 0 and 1, got {args.alpha}')
    if not 32 <= args.height <= 2048:
        parser.error(f'argument --height: between 32 and 2048, got {args.height}')
    if args.size is not None and not 32 <= args.size <= 4096:
        parser.error(f'argument --size: between 32 and 4096, got {args.size}')
    if args.all and not (args.block is None and args.head is None):
        parser.error('argument --all: leave out --block and --head, or --all')
    return args


def _load(name: str, checkpoint: str | None, device: str) -> tuple[nn.Module, Config]:
    """Load a model by the path of its config or, where there is none, by its name."""
    if not Path(name).suffix and not Path(name).exists():
        return _load_by_name(name, checkpoint, device)
    config = load_config(name)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # the same picture every time
        return load_model(config, checkpoint, device), config


def _load_by_name(name: str, checkpoint: str | None, device: str) -> tuple[nn.Module, Config]:
    from coc_mm import apis

    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # the same picture every time
        model = apis.get_model(name, pretrained=checkpoint or False)
    config = getattr(model, 'cfg', None) or model._config
    return model.to(device).eval(), config


def _checkpoints(paths: Sequence[str]) -> list[Path]:
    """List checkpoints; those of a folder in the order of their numbers."""
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = [x for x in path.glob('*.pth') if not x.name.startswith('best_')]
        if not inside:
            raise UserError(f'--gif {path}: the folder holds no checkpoints (.pth).')
        found += sorted(inside, key=lambda x: [int(n) for n in re.findall(r'\d+', x.stem)])
    return found


def _read(path: Path) -> np.ndarray:
    try:
        return to_picture(read_image(path)['img'])
    except UserError as error:
        raise UserError(f'image {path} {error}.') from None


def _check_range(model: nn.Module, args: argparse.Namespace) -> None:
    """Refuse numbers that the model does not have, before anything is computed."""
    try:
        with record_clusters(model, args.stage, args.block, args.head):
            pass
    except ValueError as error:
        raise UserError(f'{error}.') from None


class _Writer:
    """Makes the files of an image.

    Args:
        args (Namespace): From :func:`parse_clusters`.
        inspector (ClusterInspector): Of the model.
        out_dir (Path): Where files go.
        prefix (str): Begins every caption about the model's answer.
    """

    def __init__(
        self, args: argparse.Namespace, inspector: ClusterInspector, out_dir: Path, prefix: str
    ) -> None:
        self.args, self.inspector, self.out_dir = args, inspector, out_dir
        self.prefix = prefix
        self.rows: list[list] = []

    def look(self, image: np.ndarray) -> Inspection:
        """Run the model on an image, as far as it is drawn."""
        args = self.args
        block = args.block if args.block is not None or args.all else -1
        return self.inspector(image, args.stage, block, args.head)

    def caption(self, inspection: Inspection) -> str:
        """Say what the model found, and that it is untrained if it is."""
        return self.prefix + self.inspector.caption(inspection)

    def row(self, inspection: Inspection, caption: str) -> list:
        """One head of the last block asked for, in every stage."""
        last = {maps.stage: maps for maps in inspection.maps.values()}
        maps = [m.with_heads(m.heads[:1]) for m in last.values()]
        return stage_row(inspection.picture, maps, caption=caption, **self._style(inspection))

    def grid(self, inspection: Inspection, maps: ClusterMaps, title: str) -> np.ndarray:
        """All heads of a block."""
        return head_grid(inspection.picture, maps, title=title, **self._style(inspection))

    def _style(self, inspection: Inspection) -> dict:
        args = self.args
        return dict(
            alpha=args.alpha,
            extent=inspection.extent,
            height=args.height,
            centers=args.centers,
        )

    def write(self, name: str, inspection: Inspection) -> list[Path]:
        """Write all files of an image; return them."""
        args, caption = self.args, self.caption(inspection)
        written = []
        row = self.row(inspection, caption)
        if args.stage is None:
            written.append(save_picture(self.out_dir / f'{name}_stages.png', contact_sheet([row])))
            if len(self.rows) < _MAX_ROWS:
                self.rows.append(row)
        for maps in inspection.maps.values():
            stem = f'{name}_stage{maps.stage}_block{maps.block}'
            if args.head is None:
                title = f'stage {maps.stage}, block {maps.block} · {caption}'
                sheet = self.grid(inspection, maps, title)
                written.append(save_picture(self.out_dir / f'{stem}.png', sheet))
            if args.head is not None or args.all:
                written += self._singles(stem, inspection, maps)
        return written

    def _singles(self, stem: str, inspection: Inspection, maps: ClusterMaps) -> list[Path]:
        picture = inspection.picture
        if min(picture.shape[:2]) < _MIN_SIDE:
            height = round(picture.shape[0] * _MIN_SIDE / min(picture.shape[:2]))
            picture = fit(picture, height)
        written = []
        for head in maps.heads:
            drawn = draw_clusters(
                picture,
                maps,
                channel_order='rgb',
                head=head,
                alpha=self.args.alpha,
                borders=True,
                outlines=True,
                centers=self.args.centers,
                extent=inspection.extent,
            )
            written.append(save_picture(self.out_dir / f'{stem}_head{head}.png', drawn))
        return written


def _progress(content: dict, path: Path) -> str:
    """Say how far a training run was, as its checkpoint tells."""
    meta = content.get('meta') or {}
    number = re.search(r'(epoch|iter)_(\d+)', path.stem)
    if number:
        return f'{number[1]} {number[2]}'
    return f'iteration {meta["iter"]}' if 'iter' in meta else path.stem


def _animate(writer: _Writer, name: str, image: np.ndarray, checkpoints: Sequence[Path]) -> Path:
    """Draw an image once per checkpoint and join the frames."""
    model, frames = writer.inspector.model, []
    for path in checkpoints:
        content = load_checkpoint_safely(path)
        model.load_state_dict(state_dict_of(content, str(path)), strict=False)
        inspection = writer.look(image)
        title = f'{_progress(content, path)} · {writer.caption(inspection)}'
        if writer.args.stage is None:
            frames.append(contact_sheet([writer.row(inspection, 'input')], title))
        else:
            last = list(inspection.maps.values())[-1]
            frames.append(writer.grid(inspection, last, title))
    return save_gif(writer.out_dir / f'{name}.gif', frames)


def run_clusters(argv: Sequence[str] | None = None) -> None:
    """Draw the clusters of images, as ``tools/visualization/clusters.py`` does.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Raises:
        UserError: The arguments, the config, a checkpoint or an image cannot be used;
            images of a folder that can be are done first.
        CheckpointError: A checkpoint cannot be read.
    """
    args = parse_clusters(argv)
    images = find_images(args.image)
    checkpoints = _checkpoints(args.gif or [])
    checkpoint = args.checkpoint or (str(checkpoints[-1]) if checkpoints else None)
    model, config = _load(args.model, checkpoint, find_device(args.device))
    try:
        inspector = ClusterInspector(model, config, size=args.size)
    except ValueError as error:
        raise UserError(f'{args.model}: {error}.') from None
    _check_range(model, args)
    for path in checkpoints:  # a bad one is found before the work begins
        check_weights(model, load_checkpoint_safely(path), str(path), strict=True)
    out_dir = Path(args.out_dir or Path('work_dirs') / Path(args.model).stem / 'clusters')
    writer = _Writer(args, inspector, out_dir, '' if checkpoint else 'untrained · ')
    stems = [path.stem for path in images]
    failed, moving = [], {}
    for path in images:
        name = path.stem if stems.count(path.stem) == 1 else path.name
        try:
            image = _read(path)
            inspection = writer.look(image)
        except (UserError, ValueError) as error:
            if len(images) == 1:
                raise UserError(str(error)) from error
            print(f'skipped: {error}')
            failed.append(path.name)
            continue
        print(f'{path}: {writer.caption(inspection)}')
        for file in writer.write(name, inspection):
            print(f'  {file}')
        if checkpoints:
            moving[name] = path
    if len(writer.rows) > 1:
        sheet = save_picture(out_dir / 'stages.png', contact_sheet(writer.rows))
        print(f'all images: {sheet}')
    for name, path in moving.items():  # last, as it replaces the weights
        print(f'how the clusters form: {_animate(writer, name, _read(path), checkpoints)}')
    if failed:
        raise UserError(
            f'{len(failed)} of {len(images)} images could not be used: {", ".join(failed[:10])} '
            '(the reasons are above).'
        )
