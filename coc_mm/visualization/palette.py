"""Colors for any number of clusters that stay apart, also for the color-blind.

Distances are Euclidean in OKLab (https://bottosson.github.io/posts/oklab/), the least of four: as
seen with full color vision and with each of the three dichromacies, by the matrices of Machado et
al. (2009, https://doi.org/10.1109/TVCG.2009.113).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

# Okabe and Ito's set without its black, each the farthest from those before it
# (https://jfly.uni-koeln.de/color/). All colors that follow are computed.
_OKABE_ITO = [
    tuple(bytes.fromhex(color))
    for color in ['0072b2', 'f0e442', 'd55e00', '56b4e9', 'e69f00', '009e73', 'cc79a7']
]
_LIGHTNESS = (0.40, 0.93)
_CHROMA = (0.10, 0.22)
_LEVELS = 24  # of each channel among the candidates
_MAX_COLORS = 1024

_LMS_FROM_RGB = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
_LAB_FROM_LMS = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip
# Full color vision, protanopia, deuteranopia and tritanopia.
_VISION = np.array([
    np.eye(3),
    [[0.152286, 1.052583, -0.204868],
     [0.114503, 0.786281, 0.099216],
     [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968],
     [0.280085, 0.672501, 0.047413],
     [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779],
     [-0.078411, 0.930809, 0.147602],
     [0.004733, 0.691367, 0.303900]],
])  # fmt: skip


def perceived(colors: ArrayLike) -> np.ndarray:
    """Return sRGB colors (N, 3), 0 to 255, as four kinds of vision see them: (4, N, 3) OKLab."""
    srgb = np.asarray(colors, dtype=np.float64).reshape(-1, 3) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum('vij,nj->vni', _VISION, linear), 0, 1)
    return np.cbrt(seen @ _LMS_FROM_RGB.T) @ _LAB_FROM_LMS.T


@lru_cache(maxsize=32)
def _palette(count: int) -> np.ndarray:
    levels = np.rint(np.linspace(0, 255, _LEVELS))
    colors: np.ndarray = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), -1).reshape(
        -1, 3
    )
    seen = perceived(colors)
    lightness, chroma = seen[0, :, 0], np.hypot(seen[0, :, 1], seen[0, :, 2])
    keep = (lightness >= _LIGHTNESS[0]) & (lightness <= _LIGHTNESS[1])
    keep &= (chroma >= _CHROMA[0]) & (chroma <= _CHROMA[1])
    colors, seen = colors[keep], seen[:, keep]
    nearest, chosen = np.full(len(colors), np.inf), []
    for i in range(count):
        color = _OKABE_ITO[i] if i < len(_OKABE_ITO) else colors[nearest.argmax()]
        chosen.append(color)
        distance = np.sqrt(((seen - perceived(color)) ** 2).sum(-1)).min(0)
        nearest = np.minimum(nearest, distance)
    return np.array(chosen, dtype=np.uint8)


def palette(count: int) -> np.ndarray:
    """Return ``count`` colors that are far apart for every kind of color vision.

    Okabe and Ito's seven, then each time the color farthest from all before it, up to 1024.
    """
    distinct = _palette(min(int(count), _MAX_COLORS))
    return distinct[np.arange(count) % len(distinct)]


def cluster_colors(folds: tuple[int, int], centers_per_region: int) -> np.ndarray:
    """Give every cluster of a map its color (RGB), by its place alone.

    The clusters of one region differ, and regions that touch, if only at a corner, share no color.
    """
    rows, cols = folds
    group = (np.arange(rows) % 2)[:, None] * min(cols, 2) + np.arange(cols) % 2
    index = group.reshape(-1, 1) * centers_per_region + np.arange(centers_per_region)
    groups = min(rows, 2) * min(cols, 2)
    return palette(groups * centers_per_region)[index.ravel()]
