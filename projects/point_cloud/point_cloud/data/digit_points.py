"""The handwritten digits of scikit-learn as clouds: real data without a download."""

import numpy as np

from coc_mm.datasets.digits.digits import load_digits_split
from coc_mm.registry import DATASETS
from projects.point_cloud.point_cloud.data.base import PointCloudDataset, check_split


@DATASETS.register_module()
class DigitPoints(PointCloudDataset):
    """Digits as reliefs: a pixel of ``n`` gray levels is a column of ``n`` points.

    The images (8x8, 17 levels) and their split into 1347 and 450 are those of the quickstart. A
    column's points lie at random in the pixel's square, at heights from 0 to the pixel's level,
    by a generator seeded with the digit's position, and come in random order.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, split, **kwargs):
        self.split = check_split(split)
        super().__init__(**kwargs)

    def load_clouds(self):
        """Turn the images into clouds; see the base class."""
        for image, label, position in zip(*load_digits_split(self.split), strict=True):
            rng = np.random.default_rng(position)
            levels = np.rint(image.astype(np.float64) / 255 * 16).astype(int)
            rows, cols = np.nonzero(levels)
            counts = levels[rows, cols]
            spot = np.repeat(np.stack([cols, 7 - rows], 1), counts, axis=0)
            height = np.concatenate([np.arange(1, n + 1) for n in counts]) / 16
            points = np.empty((len(spot), 3), np.float32)
            points[:, :2] = spot + rng.random(spot.shape)
            points[:, 2] = 2 * height
            yield f'digit {position}', rng.permutation(points), int(label)
