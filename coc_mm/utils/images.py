"""Find images, read them as a config's loader does, and show what was read."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coc_mm.errors import UserError, print_rank0
from coc_mm.utils.image_checks import validate_image

#: What the tools write pictures as.
WRITABLE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp')
#: What is taken for an image in a folder, for training and prediction alike.
IMAGE_SUFFIXES = (
    *WRITABLE_SUFFIXES,
    *('.jfif', '.webp', '.avif', '.tif', '.tiff', '.ppm', '.pgm', '.gif'),
)


def list_files(folder: str | Path) -> list[str]:
    """List the files below a folder and the folders it links to, relative to it and sorted.

    Nothing hidden, and nothing of the ``__MACOSX`` that macOS adds to zip files.
    """
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name[0] != '.' and name != '__MACOSX']
        found += [Path(parent, name).relative_to(folder) for name in names if name[0] != '.']
    return sorted(path.as_posix() for path in found)


def list_images(folder: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """List those of :func:`list_files` that have one of some suffixes, in any case."""
    return [name for name in list_files(folder) if name.lower().endswith(tuple(suffixes))]


def count_suffixes(names: Iterable[str]) -> str:
    """Count files by suffix, the most frequent first: ``.txt (3), .heic (1)``."""
    suffixes = Counter(Path(name).suffix.lower() or Path(name).name for name in names)
    return ', '.join(f'{suffix} ({count})' for suffix, count in suffixes.most_common(8))


def find_images(path: str, leave: Path | None = None) -> list[Path]:
    """List a file of any suffix, or the images below a folder; print what is left out there.

    ``leave`` is a folder that results go to, which are no images to be read.
    """
    place = Path(path)
    if not place.is_dir():
        if not place.exists():
            raise UserError(f'image {path} does not exist; name an image file, or a folder.')
        return [place]
    files = list_files(place)
    if leave is not None and leave.is_dir():
        inside = {str(x.resolve()) for x in leave.rglob('*')}
        files = [name for name in files if str((place / name).resolve()) not in inside]
    images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        has = f', but {found}' if (found := count_suffixes(files)) else ''
        raise UserError(f'folder {path} holds no images ({", ".join(IMAGE_SUFFIXES)}){has}.')
    if other := count_suffixes(sorted(set(files) - set(images))):
        print_rank0(f'{path}: left out, not read as images: {other}')
    return [place / name for name in images]


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


def read_picture(path: str | Path, load: Any = None) -> tuple[dict[str, Any], np.ndarray]:
    """Read as :func:`read_image` does; give that and the picture of it, (H, W, 3) RGB uint8."""
    data = read_image(path, load)
    return data, to_picture(data['img'], getattr(load, 'imdecode_backend', 'cv2') != 'tifffile')


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
