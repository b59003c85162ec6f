"""From what a model saw to the pictures, numbers and names on the page."""

import threading
from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from coc_mm.errors import UserError
from coc_mm.visualization import ClusterMaps, contact_sheet, draw_clusters, fit
from coc_mm.visualization.palette import palette

from .engine import Look

__all__ = [
    'MARKS',
    'PointRow',
    'clamp',
    'color_of',
    'draw_overlay',
    'draw_prediction',
    'enlarged',
    'findings',
    'heads_sheet',
    'maps_of',
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
_drawing = threading.Lock()  # the libraries draw with matplotlib's global state


def clamp(depths, heads, stage: int, block: int, head: int) -> tuple[int, int, int]:
    """Keep a choice, as far as a model has it.

    Args:
        depths (Sequence[int]): Blocks of each stage.
        heads (Sequence[int]): Heads of each stage.
        stage (int): Stage wanted.
        block (int): Block wanted.
        head (int): Head wanted.

    Returns:
        tuple[int, int, int]: The nearest stage, block and head that exist.
    """
    stage = min(max(int(stage), 0), len(depths) - 1)
    return (
        stage,
        min(max(int(block), 0), depths[stage] - 1),
        min(max(int(head), 0), heads[stage] - 1),
    )


def maps_of(look: Look, stage: int, block: int, head: int) -> ClusterMaps:
    """Return the maps of a block.

    Args:
        look (Look): What the model saw.
        stage (int): From 0.
        block (int): From 0.
        head (int): From 0; only checked.

    Returns:
        ClusterMaps: Of all heads.

    Raises:
        UserError: The model has no such stage, block or head; told is what it has.
    """
    known = look.inspection.maps
    stages = sorted({s for s, _ in known})
    if stage not in stages:
        raise UserError(f'There is no stage {stage}; the model has stages 0 to {stages[-1]}.')
    blocks = [b for s, b in known if s == stage]
    if block not in blocks:
        raise UserError(f'Stage {stage} has no block {block}; it has blocks 0 to {max(blocks)}.')
    maps = known[stage, block]
    if head not in maps.heads:
        raise UserError(f'Stage {stage} has no head {head}; it has heads 0 to {maps.heads[-1]}.')
    return maps


def point_in(look: Look, maps: ClusterMaps, point) -> tuple[int, int] | None:
    """Return the point of a map under a position of the picture.

    Args:
        look (Look): What the model saw.
        maps (ClusterMaps): Of a block.
        point (tuple[float, float] | None): Across and down, 0 to 1 of the picture.

    Returns:
        tuple[int, int] | None: Row and column; None without a position.
    """
    if point is None:
        return None
    top, left, bottom, right = look.inspection.extent
    across, down = (min(max(float(x), 0.0), 1.0) for x in point)
    return maps.point_at((down - top) / (bottom - top), (across - left) / (right - left))


@dataclass(frozen=True)
class PointRow:
    """A head, as seen from one point.

    Attributes:
        head (int): Its number.
        cluster (int): The point's cluster in it.
        similarity (float): Of the point to the center of that cluster, 0 to 1.
        members (int): Points of the cluster.
        shared (float): Share of the chosen head's cluster that is in it, too, 0 to 1.
    """

    head: int
    cluster: int
    similarity: float
    members: int
    shared: float


def point_rows(maps: ClusterMaps, head: int, at: tuple[int, int]) -> list[PointRow]:
    """Say what every head makes of a point.

    Args:
        maps (ClusterMaps): Of all heads of a block, one image.
        head (int): The chosen one.
        at (tuple[int, int]): Row and column of the point.

    Returns:
        list[PointRow]: One per head.
    """
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
    look: Look, maps: ClusterMaps, head: int, alpha: float, marks: Collection[str] = (), point=None
) -> np.ndarray:
    """Draw the clusters of a head over the image at its own resolution.

    Args:
        look (Look): What the model saw.
        maps (ClusterMaps): Of the block.
        head (int): Its head.
        alpha (float): 0 to 1.
        marks (Collection[str]): Of :data:`MARKS`. Defaults to none.
        point (tuple[float, float] | None): Position whose cluster is shown alone.
            Defaults to None.

    Returns:
        ndarray: (height, width, 3) uint8, RGB; enlarged if it is small.
    """
    picture, at = enlarged(look.inspection.picture), point_in(look, maps, point)
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
        centers='centers' in marks,
        highlight=highlight,
        extent=look.inspection.extent,
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


def heads_sheet(look: Look, maps: ClusterMaps, alpha: float, point=None) -> np.ndarray:
    """Show all heads of a block beside each other.

    Args:
        look (Look): What the model saw.
        maps (ClusterMaps): Of all heads.
        alpha (float): 0 to 1.
        point (tuple[float, float] | None): If given, each head shows the cluster of
            that position alone. Defaults to None.

    Returns:
        ndarray: The sheet, RGB.
    """
    picture = fit(look.inspection.picture, height=_TILE)
    at = point_in(look, maps, point)
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
            extent=look.inspection.extent,
        )
        tiles.append((drawn, caption))
    columns = min(4, len(tiles))
    return contact_sheet([tiles[i : i + columns] for i in range(0, len(tiles), columns)])


def top_classes(look: Look, most: int = 5) -> list[tuple[str, float]]:
    """Return the names with the highest numbers; doubled names get a number.

    Args:
        look (Look): What the model saw.
        most (int): How many. Defaults to 5.

    Returns:
        list[tuple[str, float]]: Names with probability, score or share of the image.
    """
    found, seen = [], {}
    for name, value in look.inspection.findings[:most]:
        seen[name] = seen.get(name, 0) + 1
        found.append((name if seen[name] == 1 else f'{name} ({seen[name]})', value))
    return found


def findings(look: Look) -> list[tuple[int, float]]:
    """Return labels with their scores (objects) or shares of the image (areas).

    Args:
        look (Look): Of a detector or segmentor.

    Returns:
        list[tuple[int, float]]: The highest first.
    """
    sample = look.inspection.sample
    if look.task == 'detection':
        found = sample.pred_instances
        found = found[found.scores >= _MIN_SCORE].cpu()
        pairs = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    else:
        labels, counts = sample.pred_sem_seg.data.cpu().unique(return_counts=True)
        pairs = zip(labels.tolist(), (counts / counts.sum()).tolist(), strict=True)
    return sorted(pairs, key=lambda pair: -pair[1])


def draw_prediction(look: Look, classes, alpha: float = 0.55) -> np.ndarray | None:
    """Draw what a detector or segmentor found.

    Args:
        look (Look): What the model saw.
        classes (Sequence[str] | None): Names; numbers are shown without.
        alpha (float): Of areas. Defaults to 0.55.

    Returns:
        ndarray | None: (height, width, 3) uint8, RGB; None for a classification.
    """
    if look.task == 'classification':
        return None
    with _drawing:
        if look.task == 'detection':
            return _draw_objects(look, classes, alpha)
        return _draw_areas(look, alpha)


def name_of(classes, label: int) -> str:
    """Name a class; by its number, where there are no names."""
    return str(classes[label]) if classes is not None and label < len(classes) else str(label)


def _canvas(look: Look) -> tuple[np.ndarray, float, tuple[int, int]]:
    """The picture, its scale against the sample, and where its part of that begins."""
    picture = enlarged(look.inspection.picture).copy()
    top, left, bottom, _ = look.inspection.box
    return picture, picture.shape[0] / (bottom - top), (top, left)


def color_of(label: int) -> list[int]:
    """Return the color of a class, RGB, the same for objects and areas."""
    return palette(label + 1)[label].tolist()


def _draw_objects(look: Look, classes, alpha: float) -> np.ndarray:
    """Masks, boxes and names, best last, so that it lies on top."""
    found = look.inspection.sample.pred_instances.cpu()
    found = found[found.scores >= _MIN_SCORE]
    picture, scale, (top, left) = _canvas(look)
    height, width = picture.shape[:2]
    box = look.inspection.box
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


def _draw_areas(look: Look, alpha: float) -> np.ndarray:
    """Areas in their classes' colors."""
    box = look.inspection.box
    labels = look.inspection.sample.pred_sem_seg.data[0].cpu().numpy()
    labels = labels[box[0] : box[2], box[1] : box[3]]
    picture, *_ = _canvas(look)
    height, width = picture.shape[:2]
    labels = cv2.resize(labels.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
    colors = palette(int(labels.max()) + 1).astype(np.float32)
    return np.rint((1 - alpha) * picture + alpha * colors[labels]).astype(np.uint8)
