"""The handwritten digits of scikit-learn as an image classification dataset.

The 1 797 images (8x8, 17 gray levels) come inside scikit-learn. They are the test part of the UCI
"Optical Recognition of Handwritten Digits" data (Alpaydin and Kaynak, 1998,
https://doi.org/10.24432/C50P49).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from coc_mm.registry import DATASETS

CLASSES = tuple('0123456789')
# One RGB color per class, far apart from each other.
_COLORS = 'e6194b f58230 ffe119 3cb44b 46f0f0 0082c8 911eb4 f032e6 aa6e28 fabed4'
PALETTE = [tuple(bytes.fromhex(color)) for color in _COLORS.split()]

SPLITS = ('train', 'test')
# A quarter is held out: 450 images, so one image is 0.2 % of the top-1 accuracy.
TEST_FRACTION = 0.25


@lru_cache(maxsize=1)
def _load_all():
    """The images ``(1797, 8, 8)`` as uint8 in 0..255 and the labels ``(1797,)`` as int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'The quickstart data are the digits of scikit-learn, which is not installed: '
            'run `pip install scikit-learn`.'
        ) from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return images, digits.target.astype(np.int64)


def check_split(split: str) -> str:
    """Return ``split`` if it is one of :data:`SPLITS`, else raise ValueError."""
    if split not in SPLITS:
        raise ValueError(f'split must be one of {", ".join(SPLITS)}, got {split!r}.')
    return split


def load_digits_split(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The digits of one split: 1 347 for ``'train'``, 450 for ``'test'``.

    Of every class, the same quarter is held out on every machine. Classification and the scenes
    share the split, so no test digit is ever seen in training.

    Returns images ``(K, 8, 8)`` as uint8, white ink (255) on black (0); labels and positions in
    scikit-learn's table, both ``(K,)`` as int64.
    """
    check_split(split)
    images, labels = _load_all()
    # MT19937 streams are frozen by numpy's compatibility policy, the newer generators' are not.
    rng = np.random.RandomState(0)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(TEST_FRACTION * len(members))]] = True
    indices = np.flatnonzero(held_out if split == 'test' else ~held_out)
    return images[indices], labels[indices], indices


@DATASETS.register_module()
class DigitsDataset(BaseDataset):
    """Handwritten digits for mmpretrain, served from memory.

    Each sample carries its image under ``img`` (8, 8, 3, uint8, BGR), so a pipeline needs no
    ``LoadImageFromFile``.

    Args:
        split (str): ``'train'`` (1 347 images) or ``'test'`` (450 images).
        pipeline (Sequence[dict | Callable]): The transforms, of the config's default scope.
        test_mode (bool): Whether a failing sample raises rather than being replaced by another.
        **kwargs: Arguments of :class:`mmengine.dataset.BaseDataset`.
    """

    METAINFO = dict(classes=CLASSES, palette=PALETTE)

    def __init__(
        self,
        split: str = 'train',
        pipeline: Sequence[dict | Callable] = (),
        test_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        self.split = check_split(split)
        super().__init__(ann_file='', pipeline=list(pipeline), test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the samples; without ``img_path``, mmpretrain draws the input itself."""
        return [
            dict(
                img=np.repeat(image[..., None], 3, axis=2),
                img_shape=image.shape,
                ori_shape=image.shape,
                gt_label=int(label),
                digit_index=int(position),
            )
            for image, label, position in zip(*load_digits_split(self.split), strict=True)
        ]

    def get_gt_labels(self) -> np.ndarray:
        """The labels of all samples, an int64 array ``(K,)``."""
        return np.array([self.get_data_info(i)['gt_label'] for i in range(len(self))])

    def get_cat_ids(self, idx: int) -> list[int]:
        """The label of one sample in a list, as ``ClassBalancedDataset`` wants it."""
        return [int(self.get_data_info(idx)['gt_label'])]

    @property
    def CLASSES(self) -> Sequence[str]:  # noqa: N802 - mmpretrain's name
        """The class names, ``('0', ..., '9')``."""
        return self._metainfo['classes']
