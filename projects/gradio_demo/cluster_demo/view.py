"""Pictures, numbers and names of a result."""

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from coc_mm.visualization import ClusterMaps, contact_sheet, draw_clusters, fit
from coc_mm.visualization.palette import palette

from .engine import Result

__all__ = [
    'MARKS',
    'PointRow',
    'color_of',
    'draw_overlay',
    'draw_prediction',
    'enlarged',
    'heads_sheet',
    'name_of',
    'point_in',
    'point_rows',
    'top_classes',
]

#: What can be drawn beside the colors.
MARKS = ('region borders', 'outlines', 'centers')
_MIN_SIDE = 480  # of an overlay; smaller images are enlarged to it
_TILE = 180  # height of a picture on the sheet of heads
_MIN_SCORE = 0.3


def point_in(result: Result, maps: ClusterMaps, point) -> tuple[int, int] | None:
    """Return row and column of the point of a map that lies under a position of the picture.

    The position is given across and down, 0 to 1; without one, None is returned.
    """
    if point is None:
        return None
    top, left, bottom, right = result.inspection.extent
    across, down = (min(max(float(x), 0.0), 1.0) for x in point)
    return maps.point_at((down - top) / (bottom - top), (across - left) / (right - left))


@dataclass(frozen=True)
class PointRow:
    """A head, as seen from one point.

    Attributes:
        head: Its number.
        cluster: The point's cluster in it.
        similarity: Of the point to the center of that cluster, 0 to 1.
        members: Points of the cluster.
        shared: Share of the chosen head's cluster that is in it, too, 0 to 1.
    """

    head: int
    cluster: int
    similarity: float
    members: int
    shared: float


def point_rows(maps: ClusterMaps, head: int, at: tuple[int, int]) -> list[PointRow]:
    """Say what every head makes of the point at a row and column."""
    row, column = at
    assignment = maps.assignment[0]
    chosen = assignment[maps.index_of_head(head)]
    chosen = chosen == chosen[row, column]
    rows = []
    for place, number in enumerate(maps.heads):
        cluster = int(assignment[place, row, column])
        member = assignment[place] == cluster
        rows.append(
            PointRow(
                number,
                cluster,
                float(maps.similarity[0, place, row, column]),
                int(member.sum()),
                float((member & chosen).sum() / chosen.sum()),
            )
        )
    return rows


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Enlarge a small picture, so that its clusters can be told."""
    shorter = min(picture.shape[:2])
    if shorter >= _MIN_SIDE:
        return picture
    return fit(picture, height=round(picture.shape[0] * _MIN_SIDE / shorter))


def draw_overlay(
    result: Result,
    maps: ClusterMaps,
    head: int,
    alpha: float,
    marks: Collection[str] = (),
    point=None,
) -> np.ndarray:
    """Draw the clusters of a head over the image at its own resolution, enlarged if it is small.

    Args:
        alpha: 0 is the image, 1 flat colors.
        marks: Of :data:`MARKS`.
        point: Position whose cluster is shown alone.
    """
    picture, at = enlarged(result.inspection.picture), point_in(result, maps, point)
    highlight = None
    if at is not None:
        highlight = int(maps.assignment[0, maps.index_of_head(head), at[0], at[1]])
    drawn = draw_clusters(
        picture,
        maps,
        channel_order='rgb',
        head=head,
        alpha=min(max(float(alpha), 0.0), 1.0),
        borders='region borders' in marks,
        outlines='outlines' in marks,
        centers=bool({'centers', 'centres'} & set(marks)),
        highlight=highlight,
        extent=result.inspection.extent,
    )
    if at is not None:
        height, width = drawn.shape[:2]
        place = (round(point[0] * (width - 1)), round(point[1] * (height - 1)))
        radius = max(6, round(min(height, width) / 60))
        for thickness, color in ((5, (20, 20, 20)), (2, (255, 255, 255))):
            cv2.drawMarker(
                drawn, place, color, cv2.MARKER_CROSS, 2 * radius, thickness, cv2.LINE_AA
            )
    return drawn


def heads_sheet(result: Result, maps: ClusterMaps, alpha: float, point=None) -> np.ndarray:
    """Show all heads of a block beside each other; with ``point``, its cluster in each."""
    picture = fit(result.inspection.picture, height=_TILE)
    at = point_in(result, maps, point)
    tiles = []
    for place, head in enumerate(maps.heads):
        highlight, caption = None, f'head {head}'
        if at is not None:
            highlight = int(maps.assignment[0, place, at[0], at[1]])
            caption += f' · {float(maps.similarity[0, place, at[0], at[1]]):.2f}'
        drawn = draw_clusters(
            picture,
            maps,
            channel_order='rgb',
            head=head,
            alpha=min(max(float(alpha), 0.0), 1.0),
            highlight=highlight,
            extent=result.inspection.extent,
        )
        tiles.append((drawn, caption))
    columns = min(4, len(tiles))
    return contact_sheet([tiles[i : i + columns] for i in range(0, len(tiles), columns)])


def top_classes(result: Result, count: int = 5) -> dict[str, float]:
    """Return the most probable classes with their probability; doubled names get a number."""
    found: dict[str, float] = {}
    names = [name for name, _ in result.inspection.findings[:count]]
    for i, (name, value) in enumerate(result.inspection.findings[:count]):
        doubles = names[:i].count(name)
        found[f'{name} ({doubles + 1})' if doubles else name] = value
    return found


def draw_prediction(result: Result, classes, alpha: float = 0.55) -> np.ndarray | None:
    """Draw what a detector or segmentor found (RGB); None for a classification.

    Without names of ``classes`` their numbers are shown.
    """
    if result.task == 'classification':
        return None
    if result.task == 'detection':
        return _draw_objects(result, classes, alpha)
    return _draw_areas(result, alpha)


def name_of(classes, label: int) -> str:
    """Name a class; by its number, where there are no names."""
    return str(classes[label]) if classes is not None and label < len(classes) else str(label)


def _canvas(result: Result) -> tuple[np.ndarray, float, tuple[int, int]]:
    """The picture, its scale against the sample, and where its part of that begins."""
    picture = enlarged(result.inspection.picture).copy()
    top, left, bottom, _ = result.inspection.box
    return picture, picture.shape[0] / (bottom - top), (top, left)


def color_of(label: int) -> list[int]:
    """Return the color of a class, RGB, the same for objects and areas."""
    return palette(label + 1)[label].tolist()


def _draw_objects(result: Result, classes, alpha: float) -> np.ndarray:
    """Masks, boxes and names, best last, so that it lies on top."""
    found = result.inspection.sample.pred_instances.cpu()
    found = found[found.scores >= _MIN_SCORE]
    picture, scale, (top, left) = _canvas(result)
    height, width = picture.shape[:2]
    box = result.inspection.box
    order = found.scores.argsort().tolist()
    masks = found.get('masks')
    for i in order if masks is not None else ():
        mask = torch.as_tensor(masks[i])[box[0] : box[2], box[1] : box[3]].numpy()
        mask = cv2.resize(mask.astype(np.float32), (width, height)) > 0.5
        color = np.array(color_of(int(found.labels[i])), np.float32)
        picture[mask] = np.rint((1 - alpha) * picture[mask] + alpha * color)
    line = max(2, round(min(height, width) / 250))
    size = max(0.45, min(height, width) / 900)
    for i in order:
        x0, y0, x1, y1 = (
            round((value - start) * scale)
            for value, start in zip(found.bboxes[i].tolist(), (left, top) * 2, strict=True)
        )
        color, label = color_of(int(found.labels[i])), int(found.labels[i])
        cv2.rectangle(picture, (x0, y0), (x1, y1), color, line, cv2.LINE_AA)
        text = f'{name_of(classes, label)}  {float(found.scores[i]):.2f}'
        (w, h), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        y0 = max(y0, h + base + 4)
        cv2.rectangle(picture, (x0, y0 - h - base - 4), (x0 + w + 6, y0), color, cv2.FILLED)
        ink = (0, 0, 0) if np.dot(color, (0.3, 0.6, 0.1)) > 110 else (255, 255, 255)
        place = (x0 + 3, y0 - base - 1)
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, ink, 1, cv2.LINE_AA)
    return picture


def _draw_areas(result: Result, alpha: float) -> np.ndarray:
    """Areas in their classes' colors."""
    box = result.inspection.box
    labels = result.inspection.sample.pred_sem_seg.data[0].cpu().numpy()
    labels = labels[box[0] : box[2], box[1] : box[3]]
    picture, *_ = _canvas(result)
    height, width = picture.shape[:2]
    labels = cv2.resize(labels.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
    colors = palette(int(labels.max()) + 1).astype(np.float32)
    return np.rint((1 - alpha) * picture + alpha * colors[labels]).astype(np.uint8)
