"""Parameters and multiply-adds of a model, counted on the built model without running it."""

import logging
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch.utils.flop_counter import FlopCounterMode

from coc_mm.apis.benchmark import MEASURED, SHAPES, forward
from coc_mm.apis.model_zoo import config_of, find_entry
from coc_mm.apis.start import build_model
from coc_mm.models.layers import ContextClusterMixer


@dataclass
class Complexity:
    """What a model costs."""

    parameters: int
    backbone_parameters: int
    #: Multiply-adds for one image; of a detector those of backbone and neck.
    macs: int
    #: The share of the clustering in it, without its projections.
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
    sum's share of its own value, and the division (3 D). ``proposals`` are the centers of a
    region, ``folds`` the regions, (rows, columns) each; one region unless both folds exceed 1.
    """
    centers = proposals[0] * proposals[1]
    regions = min(folds[0], height) * min(folds[1], width) if min(folds) > 1 else 1
    per_point = 5 * head_dim + centers * (head_dim + 1)
    return heads * (height * width * per_point + regions * centers * 3 * head_dim)


def count_complexity(config: Config, shape: tuple[int, int]) -> Complexity:
    """Build the model of a config and count for one image of a height and width in pixels.

    :class:`torch.utils.flop_counter.FlopCounterMode` counts convolutions, linear layers and
    matrix products, :func:`cluster_macs` clustering. As in the paper, norms and activations are
    left out.
    """
    logging.disable(logging.WARNING)
    try:
        model = revert_sync_batchnorm(build_model(config)).eval().to('meta')
    finally:
        logging.disable(logging.NOTSET)
    clusters = []

    def count_mixer(mixer, x, *_):  # whatever backend would run
        settings = mixer.num_heads, mixer.head_dim, mixer.proposals, mixer.folds
        clusters.append(cluster_macs(x.shape[1], x.shape[2], *settings))
        return mixer.out_proj(mixer.in_proj(x).chunk(2, dim=-1)[1])

    image = torch.empty(1, getattr(model.backbone, 'in_channels', 3), *shape, device='meta')
    counter = FlopCounterMode(display=False)
    patch = mock.patch.object(ContextClusterMixer, 'forward', count_mixer)
    with torch.no_grad(), patch, counter:
        forward(model, config.default_scope, image)
    return Complexity(
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.backbone.parameters()),
        counter.get_total_flops() // 2 + sum(clusters),
        sum(clusters),
    )


#: Keys of :func:`complexity_row`.
COLUMNS = (
    *('model', 'height', 'width', 'parameters', 'paper parameters', 'multiply-adds'),
    *('of clustering', 'paper multiply-adds', 'counted'),
)


def complexity_row(name: str, shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """Count a model of the zoo; ``shape``, height and width, defaults to :data:`SHAPES`."""
    entry = find_entry(name)
    shape = shape or SHAPES[entry.scope]
    counts = count_complexity(config_of(name), shape)
    printed = entry['Metadata']
    values = (
        *(entry.name, *shape, counts.parameters, printed.get('Paper Parameters (M)')),
        *(counts.macs, counts.cluster_macs, printed.get('Paper Multiply-adds (G)')),
        MEASURED[entry.scope],
    )
    return dict(zip(COLUMNS, values, strict=True))
