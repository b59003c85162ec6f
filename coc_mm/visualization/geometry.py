"""Where the network's input lies in the picture that a test pipeline made it from."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# What the three channels of the probe hold: column, row, and where there is a picture.
_FULL = 255
_TOLERANCE = 4.0  # grey levels that a pixel may lie off the fitted line
_GOLDEN = 0.618034  # its multiples spread evenly between whole numbers


class Placement(NamedTuple):
    """A picture's place in the image that a pipeline made of it; negative where it was cropped."""

    top: int
    left: int
    bottom: int
    right: int

    def seen(self, size: tuple[int, int], made: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the top, left, bottom and right of what a picture shows in an image ``made``."""
        ends = []
        for start, stop, length, limit in zip(self[:2], self[2:], size, made, strict=True):
            scale = length / (stop - start)
            first = min(max(round(-start * scale), 0), length - 1)
            ends.append((first, max(min(round((limit - start) * scale), length), first + 1)))
        return ends[0][0], ends[1][0], ends[0][1], ends[1][1]

    def extent(
        self, size: tuple[int, int], part: tuple[int, int, int, int], input_size: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """Return the ``extent`` of a network's input over a part of the picture of this size."""
        ends = []
        for axis, (start, stop) in enumerate(zip(self[:2], self[2:], strict=True)):
            scale, length = size[axis] / (stop - start), part[axis + 2] - part[axis]
            edges = (0, input_size[axis])
            ends.append([((edge - start) * scale - part[axis]) / length for edge in edges])
        return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _ramp(length: int, across: int) -> tuple[np.ndarray, float, float]:
    """Grey levels that rise along an axis (length, across), and those at its two ends."""
    place = np.arange(length)[:, None]
    if length <= _FULL:
        step = _FULL // length  # whole, so that nothing is rounded
        levels = np.broadcast_to(step // 2 + step * place, (length, across))
        return levels, step // 2 - step / 2, step // 2 - step / 2 + step * length
    # Rounded up or down in changing places, which the mean across evens out.
    rise = _FULL / length
    levels = np.floor(rise * place + np.arange(across) * _GOLDEN % 1)
    return levels, -rise / 2, -rise / 2 + rise * length


def _fit(values, valid, axis: int, length: int, ends) -> tuple[int, int] | None:
    """Find the pixels at which a ramp starts and stops, beyond the image too."""
    count = valid.sum(axis)
    level = np.where(valid, values, 0).sum(axis) / np.maximum(count, 1)
    # At the picture's own ends, scaling repeats its last pixels and bends the ramp.
    straight = (count > 0) & (level > level[count > 0].min()) & (level < level[count > 0].max())
    place = np.flatnonzero(straight)
    if len(place) < 4:
        return None
    slope, offset = np.polyfit(place, level[place], 1)
    allowed = max(_TOLERANCE, (ends[1] - ends[0]) / length)  # one pixel of the picture
    if slope <= 0 or np.abs(slope * place + offset - level[place]).max() > allowed:
        return None
    # Pipelines scale to whole pixels and crop and pad by whole pixels.
    return round((ends[0] - offset) / slope + 0.5), round((ends[1] - offset) / slope + 0.5)


def locate(pipeline: Callable[[np.ndarray], np.ndarray], size: tuple[int, int]) -> Placement | None:
    """Find out what a pipeline does to positions, by sending it an image of positions.

    Works for any mixture of scaling, cropping and padding of (H, W, 3) uint8. None where the
    pipeline flips, turns, bends or discolors images, so that no box tells where the picture is.
    """
    rows, *row_ends = _ramp(*size)
    cols, *col_ends = _ramp(*size[::-1])
    probe = np.full((*size, 3), _FULL, np.uint8)
    probe[..., 0], probe[..., 1] = cols.T, rows
    made = pipeline(probe)
    if made.dtype != np.uint8 or made.shape[2:] != (3,):
        return None
    # A pipeline may turn BGR into RGB. Columns vary along columns alone.
    if made[..., 0].std() < made[..., 2].std():
        made = made[..., ::-1]
    valid = made[..., 2] == _FULL
    if not valid.any():
        return None
    across = _fit(made[..., 0].astype(np.float64), valid, 0, size[1], col_ends)
    down = _fit(made[..., 1].astype(np.float64), valid, 1, size[0], row_ends)
    if across is None or down is None:
        return None
    return Placement(down[0], across[0], down[1], across[1])
