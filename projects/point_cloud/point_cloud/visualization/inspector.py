"""Which cluster, or which sampled center, every point of a cloud belongs to."""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from projects.point_cloud.point_cloud.errors import PointCloudError
from projects.point_cloud.point_cloud.ops import (
    farthest_point_sample,
    gather_points,
    nearest_neighbours,
)

__all__ = ['ColoredCloud', 'color_by_center', 'color_by_cluster']


@dataclass
class ColoredCloud:
    """A cloud with a group for every point.

    Attributes:
        points (np.ndarray): (N, 3), float32.
        groups (np.ndarray): (N,), int64: the group, counted from 0; -1 for none.
        centers (np.ndarray): (S,), int64: the points that are the groups' centers.
        similarity (np.ndarray | None): (N,), float32, to the cluster's center, where that is
            what groups the points.
    """

    points: np.ndarray
    groups: np.ndarray
    centers: np.ndarray
    similarity: np.ndarray | None = None


@contextmanager
def _evaluating(model):
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        yield
    model.train(was_training)


def _stages(model, cloud):
    """Return what the stages of a model see, and their centers' indices."""
    with _evaluating(model):
        seen, chosen, indices = [], None, []
        for xyz, grouping, _ in model.stage_inputs(cloud.transpose(1, 2)):
            chosen = grouping[0] if chosen is None else chosen.gather(1, grouping[0])
            seen.append((xyz, grouping))
            indices.append(chosen)
    return seen, indices


def _position(number, count, what):
    if not -count <= number < count:
        raise PointCloudError(f'there are {count} {what}s, counted from 0; there is no {number}')
    return number % count


def _as_batch(points, model=None):
    cloud = torch.as_tensor(np.asarray(points, np.float32))[None]
    return cloud if model is None else cloud.to(next(model.parameters()))


def color_by_center(points, centers=64, model=None, stage=-1):
    """Group points by the nearest sampled center.

    Args:
        points (np.ndarray): (N, 3).
        centers (int): Centers to sample, without a model.
        model (PointMLPCoC | None): Take the centers of one of its stages.
        stage (int): Which, from 0, or negative from the end.
    """
    cloud = _as_batch(points, model)
    if model is None:
        chosen = farthest_point_sample(cloud, centers)
    else:
        stages = len(model.local_grouper_list)
        chosen = _stages(model, cloud)[1][_position(stage, stages, 'stage')]
    nearest = nearest_neighbours(cloud, gather_points(cloud, chosen), 1)
    return ColoredCloud(
        np.asarray(points, np.float32),
        nearest.flatten().cpu().numpy(),
        chosen.flatten().cpu().numpy(),
    )


def color_by_cluster(points, model, stage=-1, block=-1):
    """Group points by the context cluster that they are most similar to the center of.

    Neighborhoods overlap, so a point may be in several clusters of a stage, or in none. It is
    shown in the one where its similarity is highest. Later stages see a part of the points;
    every other one is shown as the nearest of these.

    Args:
        points (np.ndarray): (N, 3).
        model (PointMLPCoC): The model.
        stage (int): Stage, from 0, or negative from the end.
        block (int): Pair of cluster and residual block in it.
    """
    cloud = _as_batch(points, model)
    seen, indices = _stages(model, cloud)
    stage = _position(stage, len(seen), 'stage')
    blocks = model.pre_blocks_list[stage]
    block = _position(block, len(blocks.operation) // 2, 'block')
    xyz, (_, index, grouped, center) = seen[stage]
    with _evaluating(model):
        similarity = blocks.similarity(grouped, center, block)[0].float().cpu().numpy()
    member = index[0].cpu().numpy()
    group = np.broadcast_to(np.arange(len(member))[:, None], member.shape)
    # The last of repeated assignments stays: the highest similarity, then the lower group.
    order = np.lexsort((-group.ravel(), similarity.ravel()))
    groups = np.full(xyz.shape[1], -1, np.int64)
    groups[member.ravel()[order]] = group.ravel()[order]
    best = np.zeros(xyz.shape[1], np.float32)
    best[member.ravel()[order]] = similarity.ravel()[order]
    shown = nearest_neighbours(cloud, xyz, 1).flatten().cpu().numpy()
    centers = indices[stage].flatten().cpu().numpy()
    return ColoredCloud(np.asarray(points, np.float32), groups[shown], centers, best[shown])


def colour_by_centre(points, centres=64, model=None, stage=-1):
    """The earlier name of :func:`color_by_center`."""
    return color_by_center(points, centres, model, stage)


ColouredCloud, colour_by_cluster = ColoredCloud, color_by_cluster  # earlier names
