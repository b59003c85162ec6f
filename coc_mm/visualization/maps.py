"""Assignment maps: which cluster every point of a feature map belongs to.

Maps are read by hooks while the model runs; what it computes stays the same to the last bit.
A hook serves the thread that set it alone, so several threads may use one model at once.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from coc_mm.models.backbones import ContextCluster
from coc_mm.ops import assign_points, regions


@dataclass(frozen=True)
class ClusterMaps:
    """The clusters of one block, for B images and E heads.

    Attributes:
        assignment: (B, E, H, W) int64, the cluster of every point,
            ``region * centers_per_region + center_index``, regions row-major.
        center_index: (B, E, H, W) int64, the point's center within its region, row-major.
        similarity: (B, E, H, W), of the point to that center, ``sigmoid(beta + alpha * cos)``;
            float32, or float64 for a float64 model.
        center_positions: (clusters, 2), row and column of every center: the middle of the points
            that it averages, from 0 to 1 over the network's input, padding included.
        proposals: Centers per region, (rows, columns).
        folds: Regions, (rows, columns); at most one per point.
        input_size: Height and width of the network's input.
    """

    stage: int
    block: int
    heads: tuple[int, ...]
    assignment: torch.Tensor
    center_index: torch.Tensor
    similarity: torch.Tensor
    center_positions: torch.Tensor
    proposals: tuple[int, int]
    folds: tuple[int, int]
    input_size: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map, in points."""
        height, width = self.assignment.shape[-2:]
        return height, width

    @property
    def centers_per_region(self) -> int:
        """Centers of a region, M."""
        return self.proposals[0] * self.proposals[1]

    @property
    def num_clusters(self) -> int:
        """Clusters of an image and head, empty ones included."""
        return self.folds[0] * self.folds[1] * self.centers_per_region

    @property
    def region_edges(self) -> tuple[list[int], list[int]]:
        """Where regions begin, in points, rows then columns; the map's end included."""
        rows, cols = (
            [i * length // folds for i in range(folds + 1)]
            for length, folds in zip(self.size, self.folds, strict=True)
        )
        return rows, cols

    def index_of_head(self, head: int) -> int:
        """Index on the axis E of the head with this number in the model."""
        if head not in self.heads:
            held = ', '.join(map(str, self.heads))
            raise ValueError(f'these maps hold no head {head}; they hold {held}')
        return self.heads.index(head)

    def point_at(self, row: float, column: float) -> tuple[int, int]:
        """Row and column of the point that covers a position, or of the nearest one."""
        height, width = self.size
        y, x = int(row * height), int(column * width)
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    def with_heads(self, heads: Sequence[int]) -> 'ClusterMaps':
        """The maps of some of the heads, by their numbers in the model."""
        places = [self.index_of_head(head) for head in heads]
        names = ('assignment', 'center_index', 'similarity')
        chosen = {name: getattr(self, name)[:, places] for name in names}
        return replace(self, heads=tuple(heads), **chosen)

    def to(self, device: str | torch.device) -> 'ClusterMaps':
        """The maps with their tensors on another device."""
        moved: Any = {k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **moved)


def _center_positions(
    size: tuple[int, int], proposals: tuple[int, int], folds: tuple[int, int]
) -> torch.Tensor:
    """(clusters, 2): the middles of the windows that centers average."""
    axes = []
    for length, n, f in zip(size, proposals, folds, strict=True):
        cut = regions.build_axis(length, f, n, torch.device('cpu'), torch.float64)
        start = torch.arange(f) * length // f
        middle = cut.pool @ (torch.arange(cut.size, dtype=torch.float64) + 0.5)
        axes.append((start[:, None] + middle) / length)  # (folds, proposals)
    grid = torch.broadcast_tensors(axes[0][:, None, :, None], axes[1][None, :, None, :])
    return torch.stack(grid, dim=-1).reshape(-1, 2)


@dataclass
class ClusterRecord:
    """What :func:`record_clusters` saw of the last pass through the backbone.

    Attributes:
        maps: By (stage, block), in order.
        passes: How often the backbone ran; several times for sliding windows or test-time
            augmentation.
    """

    maps: dict[tuple[int, int], ClusterMaps]
    passes: int = 0


def find_backbone(model: nn.Module) -> ContextCluster:
    """Find the one ContextCluster inside a model; ValueError if it holds none or several."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, ContextCluster)}
    if not found:
        raise ValueError(f'{type(model).__name__} holds no ContextCluster backbone')
    if len(found) > 1:
        raise ValueError(
            f'{type(model).__name__} holds several ContextCluster backbones ({", ".join(found)}); '
            'give one of them instead of the model'
        )
    return next(iter(found.values()))


def _numbers(name: str, value: Any, count: int, where: str, negative: bool = False) -> list[int]:
    """Numbers of a stage, block or head, counted from the start; of all if ``value`` is None."""
    if value is None:
        return list(range(count))
    first = -count if negative else 0
    if not isinstance(value, (int, np.integer)) or not first <= value < count:
        valid = f'0 to {count - 1}' if count > 1 else 'only 0'
        from_end = f' (or {first} to -1, from the end)' if negative else ''
        raise ValueError(f'{name} {value!r} is out of range: {where} has {name}s {valid}{from_end}')
    return [int(value) % count]


def _select(
    backbone: ContextCluster, stage: int | None, block: int | None, head: int | None
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Heads to record of each (stage, block), of the stages that have the block and the head."""
    depths = [len(blocks) for blocks in backbone.blocks]
    widths = [blocks[0].mixer.num_heads for blocks in backbone.blocks]
    selected: dict[tuple[int, int], tuple[int, ...]] = {}
    refusals = []
    for s in _numbers('stage', stage, len(depths), 'the backbone'):
        try:
            blocks = _numbers('block', block, depths[s], f'stage {s}', negative=True)
            heads = tuple(_numbers('head', head, widths[s], f'stage {s}'))
        except ValueError as error:
            refusals.append(str(error))
        else:
            selected.update(((s, b), heads) for b in blocks)
    if not selected:
        raise ValueError('; '.join(refusals))
    return selected


@torch.no_grad()
def _read(module: Any, x: torch.Tensor, heads: tuple[int, ...], **names: Any) -> ClusterMaps:
    """Assign the points that enter a block."""
    mixer, points = module.mixer, module.norm1.forward(x)
    features = mixer.project(points)[0][..., list(heads), :]
    proposals, folds = mixer.proposals, mixer.folds
    assigned = assign_points(features, mixer.sim_alpha, mixer.sim_beta, proposals, folds)
    center, region, similarity = (t.permute(0, 3, 1, 2).contiguous() for t in assigned)
    height, width = points.shape[1:3]
    folds = (min(folds[0], height), min(folds[1], width))
    return ClusterMaps(
        heads=heads,
        assignment=region * (proposals[0] * proposals[1]) + center,
        center_index=center,
        similarity=similarity,
        center_positions=_center_positions((height, width), proposals, folds).to(similarity),
        proposals=proposals,
        folds=folds,
        **names,
    )


@contextmanager
def record_clusters(
    model: nn.Module, stage: int | None = None, block: int | None = None, head: int | None = None
) -> Iterator[ClusterRecord]:
    """Record the clusters of whatever the model computes in this thread.

    For the passes that a library makes itself, such as ``model.test_step`` or an inferencer; a
    later pass replaces the maps of an earlier one. For images at hand there is
    :func:`cluster_maps`. Compiled code may pass by the hooks.

    Args:
        model: Any model with one ContextCluster inside.
        stage: 0-3; None: all that have the block and the head.
        block: Block of the stage, from 0, or negative from the end; None: all.
        head: Head of the block, from 0; None: all.
    """
    backbone = find_backbone(model)
    selected = _select(backbone, stage, block, head)
    owner = threading.get_ident()
    record = ClusterRecord({})
    size = (0, 0)

    def begin(module, args):
        nonlocal size
        if threading.get_ident() == owner:
            record.passes += 1
            size = tuple(args[0].shape[1:3])  # points are pixels here

    def look(stage, block, heads, module, args):
        if threading.get_ident() == owner:
            maps = _read(module, args[0], heads, stage=stage, block=block, input_size=size)
            record.maps[stage, block] = maps

    handles = [backbone.patch_embed.register_forward_pre_hook(begin)]
    try:
        for (s, b), heads in selected.items():
            # On the block: hooks on its parts would change the way it computes.
            module = backbone.blocks[s][b]
            handles.append(module.register_forward_pre_hook(partial(look, s, b, heads)))
        yield record
    finally:
        for handle in handles:
            handle.remove()


def cluster_maps(
    model: nn.Module,
    images: torch.Tensor,
    stage: int | None = None,
    block: int | None = None,
    head: int | None = None,
) -> ClusterMaps | dict[tuple[int, int], ClusterMaps]:
    """Compute which cluster every point of images belongs to.

    The backbone alone runs, once, without gradients, in the mode that it is in, on its own
    device. Returned are the maps of one block if both stage and block are given, otherwise those
    of all blocks by (stage, block).

    Args:
        images: (B, C, H, W) or (C, H, W), floating, normalized as the backbone takes them (what
            ``model.data_preprocessor`` returns as ``inputs``), 32 x 32 or more.
        stage: As for :func:`record_clusters`, like ``block`` and ``head``.
    """
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(
            f'images must be a floating tensor, normalised as the backbone takes it; got {got}'
        )
    backbone = find_backbone(model)
    if images.dim() == 3:
        images = images[None]
    weight = backbone.patch_embed.proj.weight
    images = images.to(weight.device, weight.dtype)
    with record_clusters(backbone, stage, block, head) as record, torch.no_grad():
        # Not backbone(images): hooks of others and compiled code stay out of it.
        backbone.forward(images)
    if stage is not None and block is not None:
        return next(iter(record.maps.values()))
    return record.maps
