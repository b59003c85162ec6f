"""Synthetic clouds: points on solids of varied proportions, seen incompletely.

A stand-in to try the model without a download; nothing here was measured in the world.
"""

import numpy as np

from coc_mm.registry import DATASETS
from projects.point_cloud.point_cloud.data.base import PointCloudDataset, check_split

__all__ = ['SyntheticSolids', 'make_solid']


def _disc(rng, n, inner=0.0):
    angle, radius = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.uniform(inner**2, 1, n))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _ellipsoid(rng, n):
    x = rng.standard_normal((n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True) * rng.uniform(0.6, 1, 3)


def _box(rng, n, size=None):
    size = rng.uniform(0.4, 1, 3) if size is None else np.asarray(size)
    area = np.array([size[1] * size[2], size[0] * size[2], size[0] * size[1]])
    axis = rng.choice(3, n, p=area / area.sum())
    x = rng.uniform(-1, 1, (n, 3))
    x[np.arange(n), axis] = rng.choice([-1, 1], n)
    return x * size


def _cylinder(rng, n):
    height, radius = rng.uniform(0.6, 1.2), rng.uniform(0.3, 0.6)
    wall = rng.random(n) < height / (height + radius / 2)
    x = np.empty((n, 3))
    angle = rng.uniform(0, 2 * np.pi, n)
    x[:, :2] = np.where(wall[:, None], np.stack([np.cos(angle), np.sin(angle)], 1), _disc(rng, n))
    x[:, 2] = np.where(wall, rng.uniform(-1, 1, n), rng.choice([-1, 1], n)) * height
    return x * [radius, radius, 1]


def _cone(rng, n):
    height, radius = rng.uniform(1.2, 2), rng.uniform(0.5, 0.9)
    x = np.concatenate([_disc(rng, n), np.full((n, 1), -0.5)], 1)
    mantle = rng.random(n) < 0.7
    x[mantle, 2] = 0.5 - np.linalg.norm(x[mantle, :2], axis=1)
    return x * [radius, radius, height]


def _torus(rng, n):
    tube = rng.uniform(0.15, 0.35)
    u, v = rng.uniform(0, 2 * np.pi, (2, n))
    ring = 1 + tube * np.cos(v)
    return np.stack([ring * np.cos(u), ring * np.sin(u), tube * np.sin(v)], 1)


def _pyramid(rng, n):
    base = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * rng.uniform(0.6, 1, 3)
    apex = np.array([0, 0, rng.uniform(0.9, 1.6)])
    faces = [(base[i], base[(i + 1) % 4], apex) for i in range(4)]
    faces = np.array([*faces, base[[0, 1, 2]], base[[0, 2, 3]]])
    a, b, c = faces[rng.integers(0, 6, n)].transpose(1, 0, 2)
    u, v = np.sort(rng.random((2, n, 1)), axis=0)
    return u * a + (v - u) * b + (1 - v) * c


def _helix(rng, n):
    turns, tube = rng.uniform(2, 3), rng.uniform(0.03, 0.1)
    t = rng.random(n)
    angle = 2 * np.pi * turns * t
    line = np.stack([0.6 * np.cos(angle), 0.6 * np.sin(angle), 2 * t - 1], 1)
    return line + tube * rng.standard_normal((n, 3))


def _table(rng, n):
    width, depth, height = rng.uniform(0.6, 1, 3)
    x = _box(rng, n, (width, depth, 0.06)) + np.array([0, 0, height])
    leg = rng.random(n) < 0.4
    corner = rng.choice([-0.9, 0.9], (n, 2)) * [width, depth]
    thin = np.concatenate([corner + rng.uniform(-0.05, 0.05, (n, 2)), np.zeros((n, 1))], 1)
    thin[:, 2] = rng.uniform(-height, height, n)
    return np.where(leg[:, None], thin, x)


def _angle(rng, n):
    long, tall, wide = rng.uniform(0.7, 1, 3)
    floor = _box(rng, n, (long, wide, 0.12))
    wall = _box(rng, n, (0.12, wide, tall)) + np.array([-long, 0, tall])
    return np.where(rng.random((n, 1)) < tall / (tall + long), wall, floor)


def _cross(rng, n):
    thick = rng.uniform(0.12, 0.25)
    axis = rng.integers(0, 3, n)
    arms = [_box(rng, n, np.roll([rng.uniform(0.7, 1), thick, thick], i)) for i in range(3)]
    return np.stack(arms)[axis, np.arange(n)]


SHAPES = {
    'ellipsoid': _ellipsoid,
    'box': _box,
    'cylinder': _cylinder,
    'cone': _cone,
    'torus': _torus,
    'pyramid': _pyramid,
    'helix': _helix,
    'table': _table,
    'angle': _angle,
    'cross': _cross,
}


def make_solid(name, rng, points=512, noise=0.02, occlusion=0.3, tilt=0.2):
    """Make one cloud, (points, 3), float32, in random order.

    Args:
        name (str): One of :data:`SHAPES`.
        rng (np.random.Generator): Its state decides everything.
        points (int): Points that are left.
        noise (float): Standard deviation of the error of a coordinate; solids measure about 2.
        occlusion (float): Largest part of the points that a plane may cut away.
        tilt (float): Largest angle off the upright, in radians; the angle around it is any.
    """
    # The same number of random draws of points whatever is hidden.
    hidden = rng.uniform(0, occlusion)
    total = int(np.ceil(points / (1 - hidden)))
    x = SHAPES[name](rng, total) * rng.uniform(0.85, 1.15, 3)
    direction = rng.standard_normal(3)
    x = rng.permutation(x[np.argsort(x @ direction, kind='stable')[:points]])
    around, lean, towards = (
        rng.uniform(0, 2 * np.pi),
        rng.uniform(0, tilt),
        rng.uniform(0, 2 * np.pi),
    )
    x = x @ _turn(2, around) @ _turn(2, towards) @ _turn(0, lean) @ _turn(2, -towards)
    return (x + noise * rng.standard_normal(x.shape)).astype(np.float32)


def _turn(axis, angle):
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


@DATASETS.register_module()
class SyntheticSolids(PointCloudDataset):
    """Synthetic clouds of ten solids; ``noise``, ``occlusion``, ``tilt`` as of :func:`make_solid`.

    Args:
        split (str): 'train' or 'test': other seeds.
        per_class (int): Clouds per class.
        points (int): Points of a cloud.
        **kwargs: Of ``PointCloudDataset``.
    """

    METAINFO = dict(classes=tuple(SHAPES))

    def __init__(
        self,
        split,
        per_class=120,
        seed=0,
        points=512,
        noise=0.02,
        occlusion=0.3,
        tilt=0.2,
        **kwargs,
    ):
        self.split, self.per_class, self.seed = check_split(split), per_class, seed
        self.options = dict(points=points, noise=noise, occlusion=occlusion, tilt=tilt)
        super().__init__(**kwargs)

    def load_clouds(self):
        """Make the clouds; see the base class."""
        for label, name in enumerate(SHAPES):
            for i in range(self.per_class):
                rng = np.random.default_rng([self.seed, self.split == 'test', label, i])
                yield f'{name} {i}', make_solid(name, rng, **self.options), label
