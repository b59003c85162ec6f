"""Say why a file is no image, also when a dataset meets it in training."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np

from coc_mm.errors import UserError

_PATH_KEYS = ('img_path', 'seg_map_path', 'sem_seg_map_path')


def validate_image(path: str | os.PathLike) -> str | None:
    """Decode a file and say why it is not an image, or None if it is one."""
    from PIL import Image, UnidentifiedImageError

    path = os.fspath(path)
    if not os.path.exists(path):
        return 'does not exist'
    if os.path.isdir(path):
        return 'is a folder'
    if os.path.getsize(path) == 0:
        return 'is empty (0 bytes)'
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode == 'F' and not np.isfinite(np.asarray(image)).all():
                return 'holds pixels that are NaN or infinite'
            if image.mode in ('F', 'I') and _decode(path, 'color') is None:
                return 'holds values of 32 bits, not read as a picture; save it with 8 or 16 bits'
            return None
    except UnidentifiedImageError:  # EXR, HDR, PFM and some TIFF are OpenCV's alone
        return _validate_by_opencv(path, 'is not an image in a format that can be read')
    except Image.DecompressionBombError as error:
        return f'is too large ({error})'
    # Pillow raises all of these about damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        return f'is a damaged image ({_one_line(error)})'
    except (MemoryError, OverflowError) as error:
        return f'is too large ({_one_line(error)})'


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__


def _decode(path: str, flag: str) -> np.ndarray | None:
    import mmcv

    with open(path, 'rb') as file:
        return mmcv.imfrombytes(file.read(), flag)


def _validate_by_opencv(path: str, reason: str) -> str | None:
    try:
        found = _decode(path, 'unchanged')
    except Exception as error:  # cv2.error, and whatever a format's own reader raises
        if 'CV_IO_MAX_IMAGE' in str(error):
            return 'is too large (more than 2^30 pixels)'
        return f'{reason} ({_one_line(error)})'
    if found is None:
        return reason
    return None if _is_finite(found) else 'holds pixels that are NaN or infinite'


@contextmanager
def naming_bad_files() -> Iterator[None]:
    """Let mmcv's loading transforms name the file that they fail on in a :class:`UserError`.

    Worker processes inherit that where they are forked. Other failures pass unchanged.
    """
    from mmcv.transforms import BaseTransform

    call = BaseTransform.__call__

    def checked(self, results):
        name = type(self).__name__
        if not name.startswith('Load') or not isinstance(results, dict):
            return call(self, results)
        try:
            loaded = call(self, results)
        except UserError:
            raise
        except Exception as error:
            _name_bad_file(results, error)
            raise
        if isinstance(loaded, dict):
            _compare_sizes(loaded, name == 'LoadAnnotations')
            image = loaded.get('img')
            if isinstance(image, np.ndarray) and not _is_finite(image):
                raise UserError(
                    f'the image {loaded.get("img_path")} holds pixels that are NaN or infinite; '
                    'replace it, or take it out of the list of images.'
                )
        return loaded

    with mock.patch.object(BaseTransform, '__call__', checked):
        yield


def _is_finite(image: np.ndarray) -> bool:
    return image.dtype.kind != 'f' or bool(np.isfinite(image).all())


def _compare_sizes(results: dict, with_mask: bool) -> None:
    """Refuse a mask, or a record of an annotation file, of another size than its image."""
    size = tuple(results.get('ori_shape') or ())[:2]
    mask = results.get('gt_seg_map') if with_mask else None  # later ones are resized
    if size and mask is not None and tuple(mask.shape[:2]) != size:
        raise UserError(
            f'the mask {results.get("seg_map_path")} has {mask.shape[0]} x {mask.shape[1]} pixels '
            f'and its image {results["img_path"]} {size[0]} x {size[1]} (height x width, '
            'turned as its EXIF says): they need the same size.'
        )
    said = results.get('height'), results.get('width')
    if size and 'instances' in results and None not in said and said != size:
        raise UserError(
            f'the image {results["img_path"]} has {size[0]} x {size[1]} pixels (height x width, '
            f'turned as its EXIF says) and the annotation file says {said[0]} x {said[1]}: its '
            'boxes would lie elsewhere. Correct the file, or save the image as it is shown.'
        )


def _name_bad_file(results: dict, error: Exception) -> None:
    for key in _PATH_KEYS:
        path = results.get(key)
        if not isinstance(path, (str, os.PathLike)) or '://' in os.fspath(path):
            continue
        if reason := validate_image(path):
            raise UserError(
                f'the dataset names {path}, which {reason}; replace it, or take it out of the list '
                'of images.'
            ) from error
