"""Pictures to begin with, all from packages that are installed anyway.

Photographs: scikit-learn's (CC BY 2.0, danielbuechele and vultilion) and
scikit-image's (public domain or CC0). Digits and scenes of digits: this package's
own, from scikit-learn's copy of the UCI handwritten digits (CC BY 4.0).
"""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from coc_mm.datasets.digits.digits import load_digits_split
from coc_mm.datasets.digits.render import SceneSpec, compose_scene
from coc_mm.visualization import save_picture

__all__ = ['write_examples']

_PHOTOGRAPHS = (
    ('skimage', 'data/astronaut.png'),
    ('skimage', 'data/coffee.png'),
    ('skimage', 'data/chelsea.png'),
    ('sklearn', 'datasets/images/flower.jpg'),
    ('sklearn', 'datasets/images/china.jpg'),
)
_SCENES = (3, 8)
_DIGITS = (0, 5)


def _scene(number: int) -> np.ndarray:
    """A scene of test digits, RGB."""
    rng = np.random.RandomState([number, 17])
    image, _ = compose_scene(SceneSpec(), load_digits_split('test'), rng)
    return image[..., ::-1]


def _digit(number: int) -> np.ndarray:
    """A test digit, RGB, enlarged to be seen."""
    image = load_digits_split('test')[0][number]
    return np.repeat(cv2.resize(image, (128, 128), interpolation=cv2.INTER_CUBIC)[..., None], 3, 2)


def write_examples(folder: Path) -> list[Path]:
    """Write the examples that the installed packages allow.

    Args:
        folder: Made if it is missing.
    """
    written = []
    for number in _SCENES:
        picture = np.ascontiguousarray(_scene(number))
        written.append(save_picture(folder / f'scene-{number}.png', picture))
    for number in _DIGITS:
        written.append(save_picture(folder / f'digit-{number}.png', _digit(number)))
    for package, inside in _PHOTOGRAPHS:
        spec = find_spec(package)
        path = Path(spec.origin).parent / inside if spec and spec.origin else None
        if path is not None and path.is_file():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert('RGB'))
            written.append(save_picture(folder / f'{path.stem}.png', pixels))
    return written
