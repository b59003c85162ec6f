"""Find images, read them as a config's loader does, and show what was read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coc_mm.errors import UserError
from coc_mm.utils.image_checks import validate_image

__all__ = ['IMAGE_SUFFIXES', 'WRITABLE_SUFFIXES', 'find_images', 'read_image', 'to_picture']

#: What the tools write pictures as.
WRITABLE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp')
#: What is taken for an image in a folder, for training and prediction alike.
IMAGE_SUFFIXES = (
    *WRITABLE_SUFFIXES,
    *('.jfif', '.webp', '.avif', '.tif', '.tiff', '.ppm', '.pgm', '.gif'),
)


def find_images(path: str) -> list[Path]:
    """List a file of any suffix, or the images of a folder but for hidden ones."""
    place = Path(path)
    if place.is_dir():
        files = (x for x in place.iterdir() if x.suffix.lower() in IMAGE_SUFFIXES)
        found = sorted(x for x in files if not x.name.startswith('.'))
        if not found:
            raise UserError(
                f'folder {path} holds no images ({", ".join(IMAGE_SUFFIXES)}); name the folder '
                'that holds them itself.'
            )
        return found
    if not place.exists():
        raise UserError(f'image {path} does not exist; name an image file, or a folder of them.')
    return [place]


def read_image(path: str | Path, load: Callable[[dict], Any] | None = None) -> dict[str, Any]:
    """Read an image file by the ``LoadImageFromFile`` of a config, or mmcv's: BGR of 8 bits.

    ``img`` is (H, W) or (H, W, C), turned as its EXIF says unless the loader ignores it. A
    :class:`UserError` says why a file cannot be read.
    """
    if load is None:
        from mmcv.transforms import LoadImageFromFile

        load = LoadImageFromFile()
    # Other loaders read what is no picture: any number of bands, values of 32 bits.
    kinds = getattr(load, 'color_type', ''), getattr(load, 'imdecode_backend', '')
    if kinds[0] != 'unchanged' and kinds[1] != 'tifffile' and (reason := validate_image(path)):
        raise UserError(reason)
    try:
        found = load(dict(img_path=str(path), img_id=0))
        image = found['img']
    except Exception as error:  # each decoder raises its own, or gives nothing
        raise UserError(validate_image(path) or f'cannot be read ({error})') from error
    if image.dtype.kind == 'f' and not np.isfinite(image).all():
        raise UserError('holds pixels that are NaN or infinite')
    return found


def to_picture(image: np.ndarray, bgr: bool = True) -> np.ndarray:
    """Turn (H, W) or (H, W, C) into RGB of 8 bits: the first three bands, or the only one.

    Values beyond 8 bits, or fractions, are stretched from their least to their greatest. ``bgr``
    is the order of the bands.
    """
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, -1)
    if bgr:
        image = image[..., ::-1]
    if image.dtype != np.uint8:
        image = image.astype(np.float64)
        low, high = image.min(), image.max()
        if low < 0 or high > 255 or (image % 1).any():
            image = (image - low) * (255 / max(high - low, 1e-12))
    return np.ascontiguousarray(image.round(), np.uint8)
