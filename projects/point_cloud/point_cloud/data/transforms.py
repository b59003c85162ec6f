"""Transforms of clouds. They read and write ``points``, (N, 3) float32.

Random numbers come from numpy's global generator, which mmengine seeds in every worker.
"""

import copy

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmengine.structures import BaseDataElement

from coc_mm.registry import TRANSFORMS
from projects.point_cloud.point_cloud.errors import PointCloudError
from projects.point_cloud.point_cloud.ops import farthest_point_sample


@TRANSFORMS.register_module()
class SamplePoints(BaseTransform):
    """Take a fixed number of points, repeating some where there are fewer.

    Args:
        num_points (int): Points wanted.
        how (str): 'first' as they come, as the recipe does; 'random'; 'farthest', spread evenly.
        shuffle (bool): Put them in random order.
    """

    def __init__(self, num_points, how='first', shuffle=False):
        if num_points < 1 or how not in ('first', 'random', 'farthest'):
            raise PointCloudError(
                f"num_points={num_points} must be positive, how={how!r} one of 'first', 'random', "
                "'farthest'"
            )
        self.num_points, self.how, self.shuffle = num_points, how, shuffle

    def transform(self, results):
        """Sample ``points``."""
        points = results['points']
        length = len(points)
        if length == 0:
            raise PointCloudError(f'{results.get("name", "a cloud")} has 0 points')
        if length <= self.num_points:
            # Every point as often as any other, up to one.
            index = np.arange(self.num_points) % length
        elif self.how == 'first':
            index = np.arange(self.num_points)
        elif self.how == 'random':
            index = np.random.permutation(length)[: self.num_points]
        else:
            cloud = torch.from_numpy(np.ascontiguousarray(points))[None]
            index = farthest_point_sample(cloud, self.num_points, backend='torch')[0].numpy()
        if self.shuffle:
            index = np.random.permutation(index)
        results['points'] = points[index]
        return results


@TRANSFORMS.register_module()
class CenterPoints(BaseTransform):
    """Move the mean to the origin and scale into the unit sphere."""

    def transform(self, results):
        """Normalise ``points``."""
        points = results['points'] - results['points'].mean(0, dtype=np.float64)
        radius = np.sqrt((points**2).sum(1).max(initial=0))
        # A cloud whose points are all one stays at the origin.
        results['points'] = (points / radius if radius > 0 else points).astype(np.float32)
        return results


@TRANSFORMS.register_module()
class ScaleShiftPoints(BaseTransform):
    """Scale every axis by a random factor, then move; the defaults are the recipe's.

    Args:
        scale (tuple[float, float]): Least and largest factor.
        shift (float): Largest move along an axis.
    """

    def __init__(self, scale=(2 / 3, 3 / 2), shift=0.2):
        self.scale, self.shift = scale, shift

    def transform(self, results):
        """Augment ``points``."""
        factor = np.random.uniform(*self.scale, 3)
        move = np.random.uniform(-self.shift, self.shift, 3)
        results['points'] = (results['points'] * factor + move).astype(np.float32)
        return results


@TRANSFORMS.register_module()
class RotatePoints(BaseTransform):
    """Turn around an axis by a random angle.

    Args:
        axis (str): 'x', 'y', 'z', or 'any' for a uniformly random rotation. The upright of
            ScanObjectNN and ModelNet40 is y.
        angle (float): Largest angle either way, in degrees; not for 'any'.
    """

    def __init__(self, axis='y', angle=180.0):
        if axis not in ('x', 'y', 'z', 'any'):
            raise PointCloudError(f"axis must be 'x', 'y', 'z' or 'any', not {axis!r}")
        self.axis, self.angle = axis, angle

    def transform(self, results):
        """Turn ``points``."""
        if self.axis == 'any':
            # Columns of a Gaussian matrix made orthonormal are a uniform rotation or reflection.
            matrix, upper = np.linalg.qr(np.random.standard_normal((3, 3)))
            matrix *= np.sign(np.diag(upper))
            matrix[:, 0] *= np.sign(np.linalg.det(matrix))
        else:
            i, j = [k for k in range(3) if k != 'xyz'.index(self.axis)]
            angle = np.deg2rad(np.random.uniform(-self.angle, self.angle))
            matrix = np.eye(3)
            matrix[i, i] = matrix[j, j] = np.cos(angle)
            matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
        results['points'] = (results['points'] @ matrix.T).astype(np.float32)
        return results


@TRANSFORMS.register_module()
class JitterPoints(BaseTransform):
    """Add Gaussian noise of ``sigma``, at most ``clip``, to every coordinate."""

    def __init__(self, sigma=0.01, clip=0.05):
        self.sigma, self.clip = sigma, clip

    def transform(self, results):
        """Blur ``points``."""
        noise = self.sigma * np.random.standard_normal(results['points'].shape)
        noise = noise.clip(-self.clip, self.clip)
        results['points'] = (results['points'] + noise).astype(np.float32)
        return results


@TRANSFORMS.register_module()
class PackPoints(BaseTransform):
    """Turn a sample into what the model takes: ``inputs`` (N, 3) and ``data_samples``."""

    def transform(self, results):
        """Pack."""
        points = np.ascontiguousarray(results['points'], np.float32)
        kept = ('name', 'sample_idx')
        sample = BaseDataElement(metainfo={key: results[key] for key in kept if key in results})
        if 'gt_label' in results:
            sample.set_field(torch.tensor(results['gt_label']), 'gt_label')
        return dict(inputs=torch.from_numpy(points), data_samples=sample)


@TRANSFORMS.register_module()
class VotePoints(BaseTransform):
    """Make several versions of a cloud for vote testing, the first as it is.

    Args:
        transforms (list[dict]): What changes a version.
        pack (list[dict]): What every version ends with.
        votes (int): Versions.
    """

    def __init__(self, transforms, pack=(dict(type='coc_mm.PackPoints'),), votes=10):
        self.change, self.pack, self.votes = Compose(transforms), Compose(list(pack)), votes

    def transform(self, results):
        """Return ``inputs`` and ``data_samples`` as lists with one entry per version."""
        packed = []
        for vote in range(self.votes):
            version = copy.deepcopy(results)
            packed.append(self.pack(self.change(version) if vote else version))
        return {key: [version[key] for version in packed] for key in packed[0]}
