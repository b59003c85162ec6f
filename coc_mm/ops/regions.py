"""How a map is divided into regions, and where the centers of a region lie.

Both are separable, so everything is defined for one axis. An axis of ``length`` points divided by
``folds`` gives region ``i`` the points ``[i * length // folds, (i + 1) * length // folds)``:
regions differ by one point at most and none is empty (an axis shorter than its folds has one
region per point). Where the folds divide the length, these are the regions of the paper. Regions
of unequal size are laid out side by side, the shorter ones padded; padding has no weight anywhere.

A region of ``n`` points has ``proposals`` centers, center ``k`` averaging the points
``[floor(k * n / p), ceil((k + 1) * n / p))`` as adaptive average pooling does. With ``n < p`` some
of these windows are the same; ``center_mask`` is False for all but the first of them, which
therefore wins by rule and not by the luck of rounding.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch.autograd import forward_ad


class Axis(NamedTuple):
    """One axis of a map, divided into regions; without padding three of the tables are None."""

    length: int  # points on the axis
    folds: int  # regions, at most as many
    size: int  # points of the largest region, padding included
    # (folds * size,), the point at each place
    index: torch.Tensor | None  # type: ignore[assignment]  # hides tuple.index
    inverse: torch.Tensor | None  # (length,), the padded place of each point
    valid: torch.Tensor | None  # (folds, size), False at padding
    pool: torch.Tensor  # (folds, proposals, size), the averaging weights
    # (folds, proposals), False for a center that repeats the one before; None where none does
    center_mask: torch.Tensor | None


def build_axis(
    length: int, folds: int, proposals: int, device: torch.device, dtype: torch.dtype
) -> Axis:
    """Divide an axis. A symbolic ``length`` (``torch.export``) must be at least ``folds``."""
    known = isinstance(length, int)
    folds = min(folds, length) if known else folds
    size = length if folds == 1 else (length + folds - 1) // folds
    region = torch.arange(folds, device=device)
    start = region * length // folds
    count = (region + 1) * length // folds - start
    place = torch.arange(size, device=device)

    index = inverse = valid = center_mask = None
    if folds > 1 and not (known and length % folds == 0):
        valid = place < count[:, None]
        index = (start[:, None] + place).clamp(max=length - 1).flatten()
        point = torch.arange(length, device=device)
        region = ((point + 1) * folds - 1) // length
        inverse = region * size + point - start[region]

    center = torch.arange(proposals, device=device)
    first = center * count[:, None] // proposals
    stop = ((center + 1) * count[:, None] + proposals - 1) // proposals
    inside = (place >= first[..., None]) & (place < stop[..., None])
    pool = inside.to(dtype) / (stop - first)[..., None]
    if proposals > 1 and not (known and length // folds >= proposals):
        repeats = (first[:, 1:] == first[:, :-1]) & (stop[:, 1:] == stop[:, :-1])
        center_mask = torch.cat([torch.ones_like(repeats[:, :1]), ~repeats], dim=1)
    return Axis(length, folds, size, index, inverse, valid, pool, center_mask)


class RegionLayout:
    """The R regions of a map, of N points (padding included) and M centers each, all row-major.

    ``even`` if all are divided alike, without padding. Tables as of an :class:`Axis`: ``pool``
    (R, M, N), or (1, M, N) if even, ``valid`` (R, N), ``center_mask`` (R, M).
    """

    def __init__(self, rows: Axis, cols: Axis) -> None:
        self.rows, self.cols = rows, cols
        self.proposals = rows.pool.shape[1], cols.pool.shape[1]
        self.even = rows.valid is None and cols.valid is None
        self.pool = _outer(*(axis.pool[:1] if self.even else axis.pool for axis in (rows, cols)))
        self.valid = self.center_mask = None
        if not self.even:
            self.valid = _outer(*(_or_ones(axis.valid, axis.pool[:, 0]) for axis in (rows, cols)))
        if not (rows.center_mask is None and cols.center_mask is None):
            masks = (_or_ones(axis.center_mask, axis.pool[..., 0]) for axis in (rows, cols))
            self.center_mask = _outer(*masks)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Lay out (B, H, W, ...) with regions of equal size, padding with points nearby."""
        for dim, axis in ((1, self.rows), (2, self.cols)):
            x = x if axis.index is None else x.index_select(dim, axis.index)
        return x

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`pad`."""
        for dim, axis in ((1, self.rows), (2, self.cols)):
            x = x if axis.inverse is None else x.index_select(dim, axis.inverse)
        return x

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, E, D) as (B, R, E, N, D), or (B, H, W, C) as (B, R, N, C)."""
        rows, cols = self.rows, self.cols
        x = self.pad(x)
        x = x.reshape(x.shape[0], rows.folds, rows.size, cols.folds, cols.size, *x.shape[3:])
        x = x.permute(0, 1, 3, *((5, 2, 4, 6) if x.dim() == 7 else (2, 4, 5)))
        return x.flatten(-3, -2).flatten(1, 2)

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`split`."""
        rows, cols = self.rows, self.cols
        x = x.unflatten(-2, (rows.size, cols.size)).unflatten(1, (rows.folds, cols.folds))
        x = x.permute(0, 1, *((4, 2, 5, 3, 6) if x.dim() == 7 else (3, 2, 4, 5)))
        return self.unpad(x.flatten(3, 4).flatten(1, 2))


def _or_ones(mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask


def _outer(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Combine tables of rows (r, ...) and of columns (c, ...) to (r * c, ...), axis by axis."""
    for dim in range(x.dim()):
        x, y = x.unsqueeze(2 * dim + 1), y.unsqueeze(2 * dim)
    x = x * y
    for dim in range(x.dim() // 2):
        x = x.flatten(dim, dim + 1)
    return x


def region_layout(
    x: torch.Tensor, proposals: tuple[int, int], folds: tuple[int, int]
) -> RegionLayout:
    """Return the layout of a map (B, H, W, ...), the same object for all maps alike.

    It lies on the device of ``x``; averaging weights are float32 or float64.
    """
    height, width = x.shape[1:3]
    if torch.jit.is_tracing():  # sizes are tensors
        height, width = int(height), int(width)
    dtype = torch.promote_types(x.dtype, torch.float32)
    build = _cached_layout if runs_eagerly() else _build_layout
    return build(height, width, tuple(proposals), tuple(folds), x.device, dtype)


def _build_layout(height, width, proposals, folds, device, dtype):
    return RegionLayout(
        build_axis(height, folds[0], proposals[0], device, dtype),
        build_axis(width, folds[1], proposals[1], device, dtype),
    )


@lru_cache(maxsize=512)
def _cached_layout(*args):
    # A tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False):
        return _build_layout(*args)


def runs_eagerly() -> bool:
    """Say whether operators simply run, so that a tensor made now may be kept for later calls."""
    return not (
        torch.compiler.is_compiling()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack()  # fake tensors, counters
    )


def is_transformed() -> bool:
    """Say whether ``torch.jit.trace``, ``torch.func`` or forward AD is at work.

    They look into operators, which autograd functions and kernels of our own do not let them do.
    """
    return not torch.compiler.is_compiling() and (
        torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )
