"""Assignment maps: which cluster every point of a feature map belongs to.

Maps are read by hooks while the model runs; what it computes stays the same to the last bit.
A hook serves the thread that set it alone, so several threads may use one model at once.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from coc_mm.models.backbones import ContextCluster
from coc_mm.models.layers import ContextClusterMixer
from coc_mm.ops import assign_points, regions

__all__ = ['ClusterMaps', 'ClusterRecord', 'cluster_maps', 'find_backbone', 'record_clusters']


@dataclass(frozen=True)
class ClusterMaps:
    """The clusters of one block, for B images and E heads.

    Positions are relative to the network's input: 0 is its top or left edge, 1 its bottom or
    right edge, padding included.

    Attributes:
        stage (int): Stage of the block, 0-3.
        block (int): Number of the block within the stage, not negative.
        heads (tuple[int, ...]): Numbers of the E heads.
        assignment (Tensor): (B, E, H, W) int64, the cluster of every point;
            ``region * centers_per_region + center_index``, regions row-major.
        center_index (Tensor): (B, E, H, W) int64, the point's center within its region,
            row-major over the proposals.
        similarity (Tensor): (B, E, H, W), of the point to that center,
            ``sigmoid(beta + alpha * cos)``, in (0, 1); float32, or float64 for a float64 model.
        center_positions (Tensor): (clusters, 2), row and column of every center: the middle of
            the points that it averages.
        proposals (tuple[int, int]): Centers per region, (rows, columns).
        folds (tuple[int, int]): Regions, (rows, columns); at most one per point.
        input_size (tuple[int, int]): Height and width of the network's input.
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
        (height, width), (rows, cols) = self.size, self.folds
        return _edges(height, rows), _edges(width, cols)

    @property
    def region(self) -> torch.Tensor:
        """(B, E, H, W) int64, the region of every point, row-major."""
        return self.assignment // self.centers_per_region

    def index_of_head(self, head: int) -> int:
        """Index on the axis E of the head with this number in the model."""
        if head not in self.heads:
            held = ', '.join(map(str, self.heads))
            raise ValueError(f'these maps hold no head {head}; they hold {held}')
        return self.heads.index(head)

    def point_at(self, row: float, column: float) -> tuple[int, int]:
        """Row and column of the point that covers a position, or of the nearest one."""
        height, width = self.size
        return (
            min(max(int(row * height), 0), height - 1),
            min(max(int(column * width), 0), width - 1),
        )

    def with_heads(self, heads: Sequence[int]) -> 'ClusterMaps':
        """The maps of some of the heads, by their numbers in the model."""
        places = [self.index_of_head(head) for head in heads]
        names = ('assignment', 'center_index', 'similarity')
        chosen = {name: getattr(self, name)[:, places] for name in names}
        return replace(self, heads=tuple(heads), **chosen)

    def to(self, device: str | torch.device) -> 'ClusterMaps':
        """The maps with their tensors on another device."""
        names = ('assignment', 'center_index', 'similarity', 'center_positions')
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def _edges(length: int, folds: int) -> list[int]:
    return [i * length // folds for i in range(folds + 1)]


def _center_positions(
    size: tuple[int, int], proposals: tuple[int, int], folds: tuple[int, int]
) -> torch.Tensor:
    """(clusters, 2): the middles of the windows that centers average."""
    axes = []
    for length, n, f in zip(size, proposals, folds, strict=True):
        cut = regions.build_axis(length, f, n, torch.device('cpu'), torch.float64)
        start = torch.tensor(_edges(length, f)[:-1], dtype=torch.float64)
        middle = cut.pool @ (torch.arange(cut.size, dtype=torch.float64) + 0.5)
        axes.append((start[:, None] + middle) / length)  # (folds, proposals)
    rows, cols = axes
    grid = torch.broadcast_tensors(rows[:, None, :, None], cols[None, :, None, :])
    return torch.stack(grid, dim=-1).reshape(-1, 2)


@dataclass
class ClusterRecord:
    """What :func:`record_clusters` saw of the last pass through the backbone.

    Attributes:
        maps (dict[tuple[int, int], ClusterMaps]): By (stage, block), in order.
        passes (int): How often the backbone ran; several times for sliding windows or test-time
            augmentation.
    """

    maps: dict[tuple[int, int], ClusterMaps]
    passes: int = 0


def find_backbone(model: nn.Module) -> ContextCluster:
    """Find the one ContextCluster of a classifier, detector, segmentor or any wrapper of one.

    Raises:
        ValueError: The model holds none, or several.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, ContextCluster)}
    if not found:
        raise ValueError(f'{type(model).__name__} holds no ContextCluster backbone')
    if len(found) > 1:
        raise ValueError(
            f'{type(model).__name__} holds several ContextCluster backbones ({", ".join(found)}); '
            'give one of them instead of the model'
        )
    return next(iter(found.values()))


def _number(name: str, value: Any, count: int, where: str, negative: bool = False) -> int:
    """Check the number of a stage, block or head; return it counted from the start."""
    first = -count if negative else 0
    if not isinstance(value, (int, np.integer)) or not first <= value < count:
        valid = f'0 to {count - 1}' if count > 1 else 'only 0'
        from_end = f' (or {first} to -1, from the end)' if negative else ''
        raise ValueError(f'{name} {value!r} is out of range: {where} has {name}s {valid}{from_end}')
    return int(value) % count


def _select(
    backbone: ContextCluster, stage: int | None, block: int | None, head: int | None
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Return the heads to record of each (stage, block), checked.

    Of all stages, those are taken that have the block and the head.
    """
    depths = [len(blocks) for blocks in backbone.blocks]
    widths = [blocks[0].mixer.num_heads for blocks in backbone.blocks]
    stages = list(range(len(depths)))
    if stage is not None:
        stages = [_number('stage', stage, len(depths), 'the backbone')]
    selected: dict[tuple[int, int], tuple[int, ...]] = {}
    refusals = []
    for s in stages:
        blocks, heads = list(range(depths[s])), tuple(range(widths[s]))
        try:
            if block is not None:
                blocks = [_number('block', block, depths[s], f'stage {s}', negative=True)]
            if head is not None:
                heads = (_number('head', head, widths[s], f'stage {s}'),)
        except ValueError as error:
            refusals.append(str(error))
        else:
            selected.update(((s, b), heads) for b in blocks)
    if not selected:
        raise ValueError('; '.join(refusals))
    return selected


def _read(
    mixer: ContextClusterMixer,
    points: torch.Tensor,
    stage: int,
    block: int,
    heads: tuple[int, ...],
    input_size: tuple[int, int],
) -> ClusterMaps:
    """Assign the points that enter a mixer."""
    with torch.no_grad():
        features, _ = mixer.project(points)
        features = features[..., list(heads), :]
        center, region, similarity = (
            t.permute(0, 3, 1, 2).contiguous()
            for t in assign_points(
                features, mixer.sim_alpha, mixer.sim_beta, mixer.proposals, mixer.folds
            )
        )
    height, width = points.shape[1:3]
    folds = (min(mixer.folds[0], height), min(mixer.folds[1], width))
    proposals = (mixer.proposals[0], mixer.proposals[1])
    return ClusterMaps(
        stage=stage,
        block=block,
        heads=heads,
        assignment=region * (proposals[0] * proposals[1]) + center,
        center_index=center,
        similarity=similarity,
        center_positions=_center_positions((height, width), proposals, folds).to(similarity),
        proposals=proposals,
        folds=folds,
        input_size=input_size,
    )


@contextmanager
def record_clusters(
    model: nn.Module, stage: int | None = None, block: int | None = None, head: int | None = None
) -> Iterator[ClusterRecord]:
    """Record the clusters of whatever the model computes in this thread.

    For the passes that a library makes itself, such as ``model.test_step`` or an inferencer; for
    images at hand there is :func:`cluster_maps`. A compiled model must be run uncompiled:
    compiled code may pass by the hooks.

    Args:
        model (nn.Module): As for :func:`find_backbone`.
        stage (int | None): 0-3; None: all that have the block and the head.
        block (int | None): Block of the stage, from 0, or negative from the end; None: all.
        head (int | None): Head of the block, from 0; None: all.

    Yields:
        ClusterRecord: Filled by each pass through the backbone; a later pass replaces the maps
        of an earlier one.

    Raises:
        ValueError: A number out of range, with the valid ones, or no backbone.

    Example:
        >>> with record_clusters(model, stage=3, block=-1) as record:
        ...     result = model.test_step(batch)
        >>> record.maps[3, 1].assignment.shape
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

    def look(stage, block, heads):
        def hook(module, args):
            if threading.get_ident() == owner:
                with torch.no_grad():
                    points = module.norm1.forward(args[0])
                maps = _read(module.mixer, points, stage, block, heads, size)
                record.maps[stage, block] = maps

        return hook

    handles = [backbone.patch_embed.register_forward_pre_hook(begin)]
    try:
        for (s, b), heads in selected.items():
            # On the block: hooks on its parts would change the way it computes.
            module = backbone.blocks[s][b]
            handles.append(module.register_forward_pre_hook(look(s, b, heads)))
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
    device.

    Args:
        model (nn.Module): As for :func:`find_backbone`.
        images (Tensor): (B, C, H, W) or (C, H, W), floating, normalized as the backbone takes
            them (what ``model.data_preprocessor`` returns as ``inputs``), 32 x 32 or more.
        stage (int | None): As for :func:`record_clusters`, like ``block`` and ``head``.

    Returns:
        ClusterMaps | dict[tuple[int, int], ClusterMaps]: The maps of the block if both stage and
        block are numbers; otherwise all asked for by (stage, block).

    Raises:
        TypeError: Images that are not a floating tensor.
        ValueError: A number out of range, no backbone or several, images of another shape.

    Example:
        >>> maps = cluster_maps(model, images, stage=2, block=-1)
        >>> maps.assignment.shape  # (B, E, H / 16, W / 16)
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
