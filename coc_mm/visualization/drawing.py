"""Cluster maps painted over a picture."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike

from coc_mm.visualization.maps import ClusterMaps
from coc_mm.visualization.palette import cluster_colors

_GREY = {'rgb': cv2.COLOR_RGB2GRAY, 'bgr': cv2.COLOR_BGR2GRAY}
_SHIFT = 4  # of the fixed-point coordinates that OpenCV takes


def _points_of_pixels(length: int, points: int, start: float, stop: float) -> np.ndarray:
    """(length,) int64: the point over each pixel's middle, -1 for none."""
    position = ((np.arange(length) + 0.5) / length - start) / (stop - start)
    point = np.floor(position * points).astype(np.int64)
    return np.where((position >= 0) & (point < points), point, -1)


def spread(
    values: np.ndarray,
    size: tuple[int, int],
    extent: tuple[float, float, float, float] = (0, 0, 1, 1),
) -> tuple[np.ndarray, np.ndarray]:
    """Return a map's value at every pixel of a picture, and where the map lies over it (bool)."""
    top, left, bottom, right = extent
    rows = _points_of_pixels(size[0], values.shape[0], top, bottom)
    cols = _points_of_pixels(size[1], values.shape[1], left, right)
    return values[rows[:, None], cols], (rows >= 0)[:, None] & (cols >= 0)


def draw_clusters(
    image: ArrayLike,
    maps: ClusterMaps,
    *,
    channel_order: str,
    index: int = 0,
    head: int | None = None,
    alpha: float = 0.5,
    borders: bool = False,
    outlines: bool = False,
    centers: bool = False,
    highlight: int | Sequence[int] | None = None,
    colors: ArrayLike | None = None,
    extent: tuple[float, float, float, float] = (0, 0, 1, 1),
) -> np.ndarray:
    """Paint the clusters of one head over a picture.

    Every pixel is ``(1 - alpha) * image + alpha * color`` of its cluster, rounded.

    Args:
        image: (height, width, 3) uint8, any size; not changed.
        maps: Of a batch in which the image is ``index``.
        channel_order: 'rgb' or 'bgr', of the image and of the result.
        head: Number of the head; None where the maps hold one alone.
        alpha: 0 is the image, 1 flat colors.
        borders: Draw the borders of regions, in white.
        outlines: Draw a thin dark line where clusters meet.
        centers: Mark the centers, as dots of their clusters' colors.
        highlight: Clusters to show alone; elsewhere the picture is darkened and gray.
        colors: (clusters, 3) RGB, 0 to 255; None for :func:`cluster_colors`.
        extent: Top, left, bottom and right of the network's input relative to the picture, where
            the two differ by cropping or padding; the rest stays unpainted.
    """
    picture = np.asarray(image)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f'image must be (height, width, 3) of uint8, got {picture.shape} of {picture.dtype}'
        )
    if channel_order not in _GREY:
        raise ValueError(f"channel_order must be 'rgb' or 'bgr', got {channel_order!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f'alpha must be from 0 to 1, got {alpha!r}')
    if head is None and len(maps.heads) > 1:
        raise ValueError(f'the maps hold heads {", ".join(map(str, maps.heads))}: name one')
    place = 0 if head is None else maps.index_of_head(head)
    if colors is None:
        colors = cluster_colors(maps.folds, maps.centers_per_region)
    colors = np.asarray(colors, dtype=np.float32)
    if channel_order == 'bgr':
        colors = colors[:, ::-1]

    assignment = maps.assignment[index, place].cpu().numpy()
    clusters, inside = spread(assignment, (picture.shape[0], picture.shape[1]), extent)
    mixed = (1 - alpha) * picture.astype(np.float32) + alpha * colors[clusters]
    shown = np.arange(maps.num_clusters)
    if highlight is not None:
        shown = np.unique(np.atleast_1d(highlight)).astype(np.int64)
        if shown.size and not 0 <= shown[0] <= shown[-1] < maps.num_clusters:
            raise ValueError(
                f'highlight {highlight!r} is out of range: clusters count from 0 to '
                f'{maps.num_clusters - 1}'
            )
        clusters = np.where(np.isin(clusters, shown), clusters, -1)
        grey = cv2.cvtColor(picture, _GREY[channel_order])[..., None].astype(np.float32)
        mixed = np.where(clusters[..., None] >= 0, mixed, 0.4 * grey)
    out = np.where(inside[..., None], np.rint(mixed), picture).astype(np.uint8)
    if outlines:
        _draw_outlines(out, clusters, inside)
    if borders:
        _draw_borders(out, maps, extent)
    if centers:
        _draw_centers(out, maps, colors, extent, shown)
    return out


def _line_width(size) -> int:
    return max(1, round(min(size) / 300))


def _draw_outlines(out: np.ndarray, clusters: np.ndarray, inside: np.ndarray) -> None:
    """Darken the first pixels of a cluster below or right of another."""
    edge = np.zeros(clusters.shape, bool)
    edge[1:] |= clusters[1:] != clusters[:-1]
    edge[:, 1:] |= clusters[:, 1:] != clusters[:, :-1]
    width = max(1, _line_width(clusters.shape) // 2)
    edge = cv2.dilate(edge.astype(np.uint8), np.ones((width, width), np.uint8)) > 0
    edge &= inside
    out[edge] //= 4


def _draw_borders(out: np.ndarray, maps: ClusterMaps, extent) -> None:
    """White lines with a dark rim between regions, so they show on any color."""
    width = _line_width(out.shape[:2])
    spans = zip(extent[:2], extent[2:], out.shape[:2], strict=True)
    inside = [slice(max(round(a * n), 0), min(round(b * n), n)) for a, b, n in spans]
    lines = []
    for axis in range(2):
        at = _points_of_pixels(out.shape[axis], maps.size[axis], extent[axis], extent[axis + 2])
        region = np.searchsorted(maps.region_edges[axis][1:-1], at, side='right')
        lines += [(axis, i + 1 - width // 2) for i in np.flatnonzero(np.diff(region) > 0)]

    def strip(axis, start, stop):
        where = list(inside)
        where[axis] = slice(max(start, 0), max(stop, 0))
        return tuple(where)

    for axis, start in lines:
        rim = strip(axis, start - 1, start + width + 1)
        out[rim] = out[rim] // 2
    for axis, start in lines:
        out[strip(axis, start, start + width)] = 255


def _draw_centers(out, maps: ClusterMaps, colors: np.ndarray, extent, shown) -> None:
    """Dots where the centers lie, each in the color of its cluster with a white rim."""
    height, width = out.shape[:2]
    top, left, bottom, right = extent
    position = maps.center_positions.cpu().numpy()
    y = (top + position[:, 0] * (bottom - top)) * height
    x = (left + position[:, 1] * (right - left)) * width
    counts = [f * p for f, p in zip(maps.folds, maps.proposals, strict=True)]
    room = min(height * (bottom - top) / counts[0], width * (right - left) / counts[1])
    radius = max(min(0.014 * min(height, width), 0.14 * room), 1.2)
    one = 1 << _SHIFT
    for row, col, color in zip(y[shown], x[shown], colors[shown], strict=True):
        place = (round((col - 0.5) * one), round((row - 0.5) * one))
        dots = {radius + 1.5: (40,) * 3, radius + 0.9: (255,) * 3, 0.8 * radius: color.tolist()}
        for size, paint in dots.items():
            cv2.circle(out, place, round(size * one), paint, cv2.FILLED, cv2.LINE_AA, _SHIFT)
