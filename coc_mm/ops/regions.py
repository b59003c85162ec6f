"""How a map is cut into regions and where the centers of a region lie.

Both are separable, so everything is said for one axis. An axis of ``length``
points cut by ``folds`` gives region ``i`` the points
``[i * length // folds, (i + 1) * length // folds)``: regions differ by one
point at most and none is empty (an axis shorter than its folds has one region
per point). Where the folds divide the length this is the plain cut of the
paper. Regions of unequal size are laid out side by side with the shorter ones
padded; padded points carry no weight anywhere.

A region of ``n`` points has ``proposals`` centers, center ``k`` averaging the
points ``[floor(k * n / p), ceil((k + 1) * n / p))`` as adaptive average pooling
does. With ``n < p`` some of these windows are the same. The first of equals
wins by rule (``unique`` is False for the others), not by the luck of rounding.
"""

from functools import lru_cache
from typing import NamedTuple

import torch


class Axis(NamedTuple):
    """The cut of one axis into regions.

    Attributes:
        length (int): Points on the axis.
        folds (int): Regions, at most ``length``.
        size (int): Points of the largest region, padding included.
        index (Tensor | None): (folds * size,) int64, the point at each padded
            place; None where the folds divide the length.
        inverse (Tensor | None): (length,) int64, the padded place of each
            point; None where the folds divide the length.
        valid (Tensor | None): (folds, size) bool, False at padding; None where
            the folds divide the length.
        pool (Tensor): (folds, proposals, size), the averaging weights.
        unique (Tensor | None): (folds, proposals) bool, False for a center that
            repeats the one before; None where no region is that small.
    """

    length: int
    folds: int
    size: int
    index: torch.Tensor | None  # type: ignore[assignment]  # hides tuple.index
    inverse: torch.Tensor | None
    valid: torch.Tensor | None
    pool: torch.Tensor
    unique: torch.Tensor | None


def _build_axis(length, folds, proposals, device, dtype):
    folds = min(folds, length)
    size = -(-length // folds)
    regions = torch.arange(folds, device=device)
    start = regions * length // folds
    count = (regions + 1) * length // folds - start
    place = torch.arange(size, device=device)

    index = inverse = valid = None
    if length % folds:
        valid = place < count[:, None]
        # The last region is among the longest: no place lies beyond the last point.
        index = (start[:, None] + place).flatten()
        point = torch.arange(length, device=device)
        region = ((point + 1) * folds - 1) // length
        inverse = region * size + point - start[region]

    center = torch.arange(proposals, device=device)
    first = center * count[:, None] // proposals
    stop = -(-(center + 1) * count[:, None] // proposals)
    inside = (place >= first[..., None]) & (place < stop[..., None])
    pool = inside.to(dtype) / (stop - first)[..., None]

    unique = None
    if length // folds < proposals:
        repeats = (first[:, 1:] == first[:, :-1]) & (stop[:, 1:] == stop[:, :-1])
        unique = torch.cat([torch.ones_like(repeats[:, :1]), ~repeats], dim=1)
    return Axis(length, folds, size, index, inverse, valid, pool, unique)


@lru_cache(maxsize=512)
def _cached_axis(length, folds, proposals, device, dtype):
    # A tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False):
        return _build_axis(length, folds, proposals, device, dtype)


def axis(length: int, folds: int, proposals: int, device: torch.device, dtype: torch.dtype) -> Axis:
    """Return the :class:`Axis` of a cut, cached per size, device and dtype.

    Args:
        length (int): Points on the axis.
        folds (int): Regions asked for.
        proposals (int): Centers per region on this axis.
        device (torch.device): Where its tensors live.
        dtype (torch.dtype): Floating type of the averaging weights.

    Returns:
        Axis: The cut.
    """
    if torch.compiler.is_compiling():
        return _build_axis(length, folds, proposals, device, dtype)
    return _cached_axis(length, folds, proposals, device, dtype)


def valid_points(rows: Axis, cols: Axis) -> torch.Tensor | None:
    """Return which padded places hold a point.

    Args:
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.

    Returns:
        Tensor | None: (regions, size_h * size_w) bool, or None where all do.
    """
    return _outer(rows.valid, cols.valid, (rows.folds, rows.size), (cols.folds, cols.size))


def unique_centers(rows: Axis, cols: Axis) -> torch.Tensor | None:
    """Return which centers do not repeat an earlier one.

    Args:
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.

    Returns:
        Tensor | None: (regions, M) bool, or None where no center repeats.
    """
    return _outer(rows.unique, cols.unique, rows.pool.shape[:2], cols.pool.shape[:2])


def _outer(of_rows, of_cols, shape_rows, shape_cols):
    if of_rows is None and of_cols is None:
        return None
    mask = of_cols if of_rows is None else of_rows
    ones = mask.new_ones
    of_rows = ones(tuple(shape_rows)) if of_rows is None else of_rows
    of_cols = ones(tuple(shape_cols)) if of_cols is None else of_cols
    mask = of_rows[:, None, :, None] & of_cols[None, :, None, :]
    return mask.reshape(shape_rows[0] * shape_cols[0], shape_rows[1] * shape_cols[1])


def pad(x: torch.Tensor, rows: Axis, cols: Axis) -> torch.Tensor:
    """Lay unequal regions out with equal size.

    Args:
        x (Tensor): (B, H, W, ...).
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.

    Returns:
        Tensor: (B, folds_h * size_h, folds_w * size_w, ...); ``x`` itself
        where the folds divide it. Padding repeats a neighbour, and is finite.
    """
    if rows.index is not None:
        x = x.index_select(1, rows.index)
    if cols.index is not None:
        x = x.index_select(2, cols.index)
    return x


def unpad(x: torch.Tensor, rows: Axis, cols: Axis) -> torch.Tensor:
    """Undo :func:`pad`.

    Args:
        x (Tensor): (B, folds_h * size_h, folds_w * size_w, ...).
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.

    Returns:
        Tensor: (B, H, W, ...).
    """
    if rows.inverse is not None:
        x = x.index_select(1, rows.inverse)
    if cols.inverse is not None:
        x = x.index_select(2, cols.inverse)
    return x


def split(x: torch.Tensor, rows: Axis, cols: Axis) -> torch.Tensor:
    """Cut a padded map into regions.

    Args:
        x (Tensor): (B, folds_h * size_h, folds_w * size_w, E, D), see :func:`pad`.
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.

    Returns:
        Tensor: (B, regions, E, N, D), N = size_h * size_w, both row-major.
    """
    b, _, _, e, d = x.shape
    x = x.reshape(b, rows.folds, rows.size, cols.folds, cols.size, e, d)
    x = x.permute(0, 1, 3, 5, 2, 4, 6)
    return x.reshape(b, rows.folds * cols.folds, e, rows.size * cols.size, d)


def merge(x: torch.Tensor, rows: Axis, cols: Axis) -> torch.Tensor:
    """Undo :func:`split`.

    Args:
        x (Tensor): (B, regions, E, N, D).
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.

    Returns:
        Tensor: (B, folds_h * size_h, folds_w * size_w, E, D).
    """
    b, _, e, _, d = x.shape
    x = x.reshape(b, rows.folds, cols.folds, e, rows.size, cols.size, d)
    x = x.permute(0, 1, 4, 2, 5, 3, 6)
    return x.reshape(b, rows.folds * rows.size, cols.folds * cols.size, e, d)
