"""Cluster maps painted over a picture."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike

from coc_mm.visualization.maps import ClusterMaps
from coc_mm.visualization.palette import cluster_colors

__all__ = ['draw_clusters']

_GREY = {'rgb': cv2.COLOR_RGB2GRAY, 'bgr': cv2.COLOR_BGR2GRAY}
_SHIFT = 4  # of the fixed-point coordinates that OpenCV takes


def _as_picture(image) -> np.ndarray:
    picture = np.asarray(image)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f'image must be (height, width, 3) of uint8, got {picture.shape} of {picture.dtype}'
        )
    return picture


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
    """Lay a map (H, W) over a picture: every pixel takes the value of the point above it.

    ``extent`` is the map's place, as for :func:`draw_clusters`. Returned are the values, (height,
    width), and where the map lies over the picture, bool.
    """
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

    Every pixel is ``(1 - alpha) * image + alpha * color`` of its cluster, rounded; where clusters
    meet, colors are not mixed.

    Args:
        image (array_like): (height, width, 3) uint8, any size; not changed.
        maps (ClusterMaps): Of a batch in which the image is ``index``.
        channel_order (str): 'rgb' or 'bgr', of the image and of the result.
        index (int): Image of the batch.
        head (int | None): Number of the head; None where the maps hold one alone.
        alpha (float): 0 is the image, 1 flat colors.
        borders (bool): Draw the borders of regions, in white.
        outlines (bool): Draw a thin dark line where clusters meet.
        centers (bool): Mark the centers, as dots of their clusters' colors.
        highlight (int | Sequence[int] | None): Clusters to show alone; elsewhere the picture is
            darkened and gray.
        colors (array_like | None): (clusters, 3) RGB, 0 to 255; None for
            :func:`coc_mm.visualization.cluster_colors`.
        extent (tuple[float, float, float, float]): Top, left, bottom and right of the network's
            input relative to the picture, where the two differ by cropping or padding; the rest
            stays unpainted.

    Returns:
        ndarray: (height, width, 3) uint8, in the order of the image.

    Raises:
        ValueError: An argument of another form or out of range.
    """
    picture = _as_picture(image)
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
    clusters, inside = spread(assignment, picture.shape[:2], extent)
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
        member = clusters >= 0
        grey = cv2.cvtColor(picture, _GREY[channel_order])[..., None].astype(np.float32)
        mixed = np.where(member[..., None], mixed, np.broadcast_to(0.4 * grey, mixed.shape))
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
    if width > 1:
        edge = cv2.dilate(edge.astype(np.uint8), np.ones((width, width), np.uint8)) > 0
    edge &= inside
    out[edge] //= 4


def _draw_borders(out: np.ndarray, maps: ClusterMaps, extent) -> None:
    """White lines with a dark rim between regions, so they show on any color."""
    width = _line_width(out.shape[:2])
    inside = [slice(*_span(extent[i], extent[i + 2], out.shape[i])) for i in range(2)]
    lines = []
    for axis in range(2):
        points, edges = maps.size[axis], maps.region_edges[axis][1:-1]
        at = _points_of_pixels(out.shape[axis], points, extent[axis], extent[axis + 2])
        for edge in edges:
            first = int(np.argmax(at >= edge))  # first pixel of the next region
            if at[first] >= edge and first > 0:
                lines.append((axis, first - width // 2))

    def strip(axis, start, stop):
        where = list(inside)
        where[axis] = slice(max(start, 0), max(stop, 0))
        return tuple(where)

    for axis, start in lines:
        rim = strip(axis, start - 1, start + width + 1)
        out[rim] = out[rim] // 2
    for axis, start in lines:
        out[strip(axis, start, start + width)] = 255


def _span(start: float, stop: float, length: int) -> tuple[int, int]:
    """Pixels that lie between two relative positions."""
    return max(round(start * length), 0), min(round(stop * length), length)


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
        for size, paint in (
            (radius + 1.5, (40, 40, 40)),
            (radius + 0.9, (255, 255, 255)),
            (0.8 * radius, color.tolist()),
        ):
            size = round(size * one)
            cv2.circle(out, place, size, paint, cv2.FILLED, cv2.LINE_AA, _SHIFT)
