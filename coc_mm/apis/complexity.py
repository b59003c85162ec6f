"""Parameters and multiply-adds of a model, counted on the built model without running it."""

import argparse
import csv
import fnmatch
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from coc_mm.apis.model_zoo import config_of, find_entry, list_models
from coc_mm.apis.start import build_model
from coc_mm.errors import UserError
from coc_mm.models.backbones.context_cluster import MIN_SIZE
from coc_mm.models.layers import ContextClusterMixer

__all__ = ['Complexity', 'cluster_macs', 'complexity_row', 'count_complexity', 'run_complexity']


@dataclass
class Complexity:
    """What a model costs.

    Attributes:
        parameters (int): Of the whole model.
        backbone_parameters (int): Of its backbone.
        macs (int): Multiply-adds for one image; of a detector those of backbone and
            neck, since those of its heads depend on what is seen.
        cluster_macs (int): The share of the clustering in it, without its projections.
    """

    parameters: int
    backbone_parameters: int
    macs: int
    cluster_macs: int


def cluster_macs(
    height: int,
    width: int,
    heads: int,
    head_dim: int,
    proposals: tuple[int, int],
    folds: tuple[int, int],
) -> int:
    """Count the multiply-adds of clustering one map (arXiv 2303.01494, section 3.2).

    Per point and head of D channels: two poolings (2 D), the norm (D), the cosine to
    each of the M centers of the region (M D) with its scale and shift (M), the weighted
    sum of its one cluster (D) and the dispatch from it (D). Per center: the norm, the
    sum's share of its own value, and the division (3 D).

    Args:
        height (int): Rows of the map.
        width (int): Columns of the map.
        heads (int): Heads.
        head_dim (int): D.
        proposals (tuple[int, int]): Centers of a region, (rows, columns).
        folds (tuple[int, int]): Regions, (rows, columns); one region unless both exceed 1.

    Returns:
        int: Multiply-adds; the same for every backend.
    """
    points = height * width
    centers = proposals[0] * proposals[1]
    regions = 1
    if min(folds) > 1:
        regions = min(folds[0], height) * min(folds[1], width)
    per_point = 5 * head_dim + centers * (head_dim + 1)
    return heads * (points * per_point + regions * centers * 3 * head_dim)


@contextmanager
def _counting_mixers() -> Iterator[list[int]]:
    """Let mixers note the formula's count in place of clustering, whatever would run."""
    counts = []

    def forward(mixer, x, scale=None):
        batch, height, width, _ = x.shape
        counts.append(
            batch
            * cluster_macs(
                height, width, mixer.num_heads, mixer.head_dim, mixer.proposals, mixer.folds
            )
        )
        values = mixer.in_proj(x).chunk(2, dim=-1)[1]
        return mixer.out_proj(values)

    with mock.patch.object(ContextClusterMixer, 'forward', forward):
        yield counts


@contextmanager
def _quiet() -> Iterator[None]:
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _forward(model: Any, scope: str, image: torch.Tensor) -> None:
    if scope == 'mmdet':
        model.extract_feat(image)
    else:
        model(image, mode='tensor')


def count_complexity(config: Config, shape: tuple[int, int]) -> Complexity:
    """Build the model of a config and count.

    Convolutions, linear layers and matrix products are counted by
    :class:`torch.utils.flop_counter.FlopCounterMode`, two floating point operations
    to a multiply-add; clustering by :func:`cluster_macs`. Norms and activations are
    left out, as in the paper. Nothing is computed: tensors are on the device ``meta``.

    Args:
        config (Config): With ``model`` and ``default_scope``.
        shape (tuple[int, int]): Height and width of the image, in pixels.

    Returns:
        Complexity: The counts for one image.
    """
    with _quiet():
        model = revert_sync_batchnorm(build_model(config)).eval().to('meta')
    image = torch.empty(1, 3, *shape, device='meta')
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _counting_mixers() as clusters, counter:
        _forward(model, config.default_scope, image)
    return Complexity(
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.backbone.parameters()),
        counter.get_total_flops() // 2 + sum(clusters),
        sum(clusters),
    )


_SHAPES = {'classification': (224, 224), 'detection': (800, 1280), 'segmentation': (512, 512)}
_COLUMNS = (
    *('model', 'height', 'width', 'parameters', 'paper parameters', 'multiply-adds'),
    *('of clustering', 'paper multiply-adds', 'counted'),
)


def complexity_row(name: str, shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """Count a model of the zoo.

    Args:
        name (str): Of the model.
        shape (tuple[int, int], optional): Height and width of the image; if None
            224 x 224, for detectors 800 x 1280, for segmentors 512 x 512.

    Returns:
        dict: The columns of the table; the paper's figures are None where it has none.

    Raises:
        UserError: There is no such model.
    """
    entry = find_entry(name)
    shape = shape or _SHAPES[entry.task]
    counts = count_complexity(config_of(name), shape)
    printed = entry['Metadata']
    parts = 'backbone and neck' if entry.scope == 'mmdet' else 'whole model'
    values = (
        *(entry.name, *shape, counts.parameters, printed.get('Paper Parameters (M)')),
        *(counts.macs, counts.cluster_macs, printed.get('Paper Multiply-adds (G)'), parts),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _table(rows: list[dict]) -> Table:
    table = Table(
        *('model', 'image', 'parameters\nM', '\n/ 2^20', 'paper', 'multiply-adds\nG'),
        *('\n/ 2^30', 'of them\nclustering', 'paper', 'counted'),
        caption='The paper divides parameters by 2^20 and multiply-adds by 2^30. Its parameters '
        'of the detectors do not follow from the released code, in either unit.',
    )
    for row in rows:
        parameters, macs = row['parameters'], row['multiply-adds']
        table.add_row(
            row['model'],
            f'{row["height"]}x{row["width"]}',
            f'{parameters / 1e6:.1f}',
            f'{parameters / 2**20:.1f}',
            _blank(row['paper parameters']),
            f'{macs / 1e9:.1f}',
            f'{macs / 2**30:.1f}',
            f'{row["of clustering"] / 1e9:.2f}',
            _blank(row['paper multiply-adds']),
            row['counted'],
        )
    return table


def _blank(value: object) -> str:
    return '' if value is None else str(value)


def run_complexity(argv: Sequence[str] | None = None) -> None:
    """Print the table, as ``tools/analysis_tools/model_complexity.py`` does.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Raises:
        UserError: A name is unknown, the image too small, or a library missing.
    """
    parser = argparse.ArgumentParser(
        prog='model_complexity.py',
        description="Parameters and multiply-adds of models, beside the paper's.",
    )
    parser.add_argument(
        'names', nargs='*', help='names of models, * and ? understood; default: the classifiers'
    )
    parser.add_argument(
        '--shape', nargs='+', type=int, metavar='N', help='height and width of the image, or both'
    )
    parser.add_argument('--csv', action='store_true', help='print CSV, in units, not a table')
    args = parser.parse_args(argv)
    shape = args.shape and tuple(args.shape * 2 if len(args.shape) == 1 else args.shape)
    if shape and (len(shape) != 2 or min(shape) < MIN_SIZE):
        parser.error(f'argument --shape: one or two numbers, at least {MIN_SIZE}')
    names = [] if args.names else list_models(task='classification')
    for given in args.names:
        found = fnmatch.filter(list_models(), given.lower())
        names += found or [find_entry(given).name]
    try:
        rows = [complexity_row(name, shape) for name in dict.fromkeys(names)]
    except ModuleNotFoundError as error:
        raise UserError(f'{error}: install it, or name models of a library you have.') from None
    if args.csv:
        writer = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    else:
        console = Console()
        width = None if console.is_terminal else 160
        Console(width=width).print(_table(rows))
