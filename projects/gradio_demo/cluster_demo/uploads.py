"""From a file of unknown content to pixels, or to one sentence that says why not."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from coc_mm.errors import UserError
from coc_mm.visualization import fit

__all__ = ['Limits', 'read_upload']

# Formats whose readers are plain decoders; EPS, for one, would start another program.
_FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')


@dataclass(frozen=True)
class Limits:
    """What is taken.

    Attributes:
        megabytes (float): Size of a file.
        megapixels (float): Size of an image as stored.
        longest (int): Longer side that is kept; larger images are shrunk to it.
        shortest (int): Least shorter side.
        seconds (float): Time that a model may take for an image.
    """

    megabytes: float = 20
    megapixels: float = 50
    longest: int = 2048
    shortest: int = 8
    seconds: float = 60


def _open(path: Path, limits: Limits) -> Image.Image:
    image = Image.open(path, formats=_FORMATS)
    width, height = image.size  # known before anything is decoded
    if width * height > limits.megapixels * 1e6:
        raise UserError(
            f'The image has {width} x {height} pixels, more than the {limits.megapixels:g} million '
            'that are taken here; scale it down first.'
        )
    if max(width, height) > 30 * min(width, height):
        raise UserError(f'The image is a strip of {width} x {height} pixels; cut a part out of it.')
    if min(width, height) < limits.shortest:
        raise UserError(
            f'The image has {width} x {height} pixels; {limits.shortest} x {limits.shortest} is '
            'the least.'
        )
    image.load()
    return image


def _as_rgb(image: Image.Image) -> np.ndarray:
    """Upright, on white where it is transparent, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(('I', 'F')):
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UserError('The image holds pixels that are NaN or infinite; it shows nothing.')
        grey = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
        return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
    if 'A' in image.getbands() or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return np.array(image.convert('RGB'))


def read_upload(path: str | Path, limits: Limits | None = None) -> tuple[np.ndarray, str]:
    """Decode an image file.

    Args:
        path (str | Path): The file; its name is not trusted to say what it is.
        limits (Limits, optional): What is taken. Defaults to ``Limits()``.

    Returns:
        tuple[ndarray, str]: (height, width, 3) uint8 RGB, and a remark if the image
        was shrunk.

    Raises:
        UserError: The file is no image, damaged, too large or too small.
    """
    path, limits = Path(path), limits or Limits()
    try:
        size = path.stat().st_size
        if size == 0:
            raise UserError('The file is empty.')
        if size > limits.megabytes * 1e6:
            raise UserError(
                f'The file has {size / 1e6:.1f} MB, more than the {limits.megabytes:g} MB that are '
                'taken here.'
            )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow's own, lower limit; ours is checked above
            with _open(path, limits) as image:
                pixels = _as_rgb(image)
    except UnidentifiedImageError:
        raise UserError(
            f'The file is not an image that can be read; {", ".join(_FORMATS)} are.'
        ) from None
    except FileNotFoundError:
        raise UserError('The file is gone; give it again.') from None
    except Image.DecompressionBombError:
        raise UserError(
            f'The image has far more than the {limits.megapixels:g} million pixels that are taken '
            'here; scale it down first.'
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError):
        raise UserError('The image is damaged: it cannot be decoded to its end.') from None
    height, width = pixels.shape[:2]
    shrunk = fit(pixels, longest=limits.longest)
    if shrunk is pixels:
        return pixels, ''
    size = f'{shrunk.shape[1]} x {shrunk.shape[0]}'
    return shrunk, f'Shrunk from {width} x {height} to {size} pixels.'
