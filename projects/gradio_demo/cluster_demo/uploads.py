"""Decoding of uploaded images within limits."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from coc_mm.errors import UserError
from coc_mm.utils.images import read_image, to_picture
from coc_mm.visualization import fit

__all__ = ['Limits', 'read_upload']

# Plain decoders; that of EPS, for one, would start another program.
_FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
_MIN_SIDE = 8
_MAX_RATIO = 30


@dataclass(frozen=True)
class Limits:
    """What is taken.

    Attributes:
        megapixels: Size of an image as stored, in millions of pixels.
        longest: Longer side in pixels; larger images are shrunk to it.
        seconds: Time that a model may take for an image.
    """

    megapixels: float = 50
    longest: int = 2048
    seconds: float = 60


def _check_size(width: int, height: int, limits: Limits) -> None:
    size = f'{width} x {height} pixels'
    if width * height > limits.megapixels * 1e6:
        raise UserError(
            f'The image has {size}, more than the {limits.megapixels:g} million that are taken '
            'here; scale it down first.'
        )
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise UserError(f'The image is a strip of {size}; cut a part out of it.')
    if min(width, height) < _MIN_SIDE:
        raise UserError(f'The image has {size}; {_MIN_SIDE} x {_MIN_SIDE} is the least.')


def _as_rgb(image: Image.Image) -> np.ndarray:
    """A picture of values of 32 bits, which no loader reads as one: scaled to 8."""
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UserError('The image holds pixels that are NaN or infinite; it shows nothing.')
    return to_picture(values)


def read_upload(path: str | Path, limits: Limits | None = None) -> tuple[np.ndarray, str]:
    """Decode an image file, whatever its name says, as training and inference do."""
    path, limits = Path(path), limits or Limits()
    try:
        if path.stat().st_size == 0:
            raise UserError('The file is empty.')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow's own, lower limit
            with Image.open(path, formats=_FORMATS) as image:
                _check_size(*image.size, limits)  # before anything is decoded
                image.load()
                deep = image.mode in ('I', 'F')
                pixels = _as_rgb(image) if deep else to_picture(read_image(path)['img'])
    except UnidentifiedImageError:
        formats = ', '.join(_FORMATS)
        raise UserError(f'The file is not an image that can be read; {formats} are.') from None
    except FileNotFoundError:
        raise UserError('The file is gone; give it again.') from None
    except Image.DecompressionBombError:
        raise UserError(
            f'The image has far more than the {limits.megapixels:g} million pixels that are taken '
            'here; scale it down first.'
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError):
        raise UserError('The image is damaged: it cannot be decoded to its end.') from None
    shrunk = fit(pixels, longest=limits.longest)
    if shrunk is pixels:
        return pixels, ''
    old, new = (f'{x.shape[1]} x {x.shape[0]}' for x in (pixels, shrunk))
    return shrunk, f'Shrunk from {old} to {new} pixels.'
