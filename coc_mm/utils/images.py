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
    """List the images meant by a file or a folder.

    Args:
        path (str): An image file of any suffix, or a folder, whose sub-folders and hidden files
            are left out.

    Raises:
        UserError: There is nothing, no image in the folder, or the file cannot be decoded.
    """
    place = Path(path)
    if place.is_dir():
        found = sorted(
            file
            for file in place.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith('.')
        )
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
    """Read an image file as training does, turned as its EXIF says unless the loader ignores it.

    Args:
        path (str | Path): A local file.
        load (LoadImageFromFile, optional): Of a config, with its ``color_type``,
            ``imdecode_backend`` and ``to_float32``. Defaults to mmcv's defaults: BGR of 8 bits.

    Returns:
        dict: With ``img`` (H, W) or (H, W, C), ``img_path``, ``img_shape``, ``ori_shape``.

    Raises:
        UserError: The file cannot be read, with the reason.
    """
    if load is None:
        from mmcv.transforms import LoadImageFromFile

        load = LoadImageFromFile()
    # Other loaders read what is no picture: any number of bands, values of 32 bits.
    as_picture = (
        getattr(load, 'color_type', '') != 'unchanged'
        and getattr(load, 'imdecode_backend', '') != 'tifffile'
    )
    reason = validate_image(path) if as_picture else None
    if reason:
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
    """Show what a loader read: the first three bands, or the only one, as RGB of 8 bits.

    Args:
        image (ndarray): (H, W) or (H, W, C); values beyond 8 bits, or fractions, are stretched
            from their least to their greatest.
        bgr (bool): Whether three bands are in the order blue, green, red. Defaults to True.

    Returns:
        ndarray: (H, W, 3), uint8.
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
