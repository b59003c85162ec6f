"""Name the file when a dataset meets one that is not an image."""

import io
import math
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from coc_mm.errors import UserError

__all__ = ['naming_bad_files', 'validate_image']

_PATH_KEYS = ('img_path', 'seg_map_path', 'sem_seg_map_path')


def validate_image(path: str | os.PathLike) -> str | None:
    """Try to decode a file as an image.

    Args:
        path (str | os.PathLike): A local file.

    Returns:
        str | None: The reason why it is not an image; None if it is.
    """
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
            return _why_no_values(image, path)
    except UnidentifiedImageError:
        return _unless_opencv_reads(path, 'is not an image in a format that can be read')
    except Image.DecompressionBombError as error:
        return f'is too large ({error})'
    # Pillow raises all of these about damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        return f'is a damaged image ({_one_line(error)})'
    except (MemoryError, OverflowError) as error:
        return f'is too large ({_one_line(error)})'


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__


def _why_no_values(image, path: str) -> str | None:
    """Images of 32 bits hold anything; what is no number, or no picture to OpenCV, is named."""
    if image.mode not in ('F', 'I'):
        return None
    if image.mode == 'F' and not np.isfinite(np.asarray(image)).all():
        return 'holds pixels that are NaN or infinite'
    import cv2

    with open(path, 'rb') as file:
        content = np.frombuffer(file.read(), np.uint8)
    if cv2.imdecode(content, cv2.IMREAD_COLOR) is None:
        return 'holds values of 32 bits, which are not read as a picture; save it with 8 or 16 bits'
    return None


def _unless_opencv_reads(path: str, reason: str) -> str | None:
    """Formats differ between the decoders: EXR, HDR, PFM, some TIFF are OpenCV's alone."""
    import mmcv

    with open(path, 'rb') as file:
        content = file.read()
    if not content.startswith(_OF_OPENCV):  # also what Pillow finds too damaged to identify
        return reason
    pixels = _declared_pixels(content)
    if pixels is None or pixels > _most_pixels():
        return reason if pixels is None else f'is too large ({pixels} pixels)'
    try:
        found = mmcv.imfrombytes(content, flag='unchanged')
    except Exception as error:  # cv2.error, and whatever a format's own reader raises
        return f'{reason} ({_one_line(error)})'
    if found is None:
        return reason
    if found.dtype.kind == 'f' and not np.isfinite(found).all():
        return 'holds pixels that are NaN or infinite'
    return None


# Radiance, Portable FloatMap, TIFF of either byte order, OpenEXR.
_OF_OPENCV = (b'#?RADIANCE', b'#?RGBE', b'PF', b'Pf', b'II*\0', b'MM\0*', b'\x76\x2f\x31\x01')


def _most_pixels() -> float:
    """Pillow's own limit, which ``PIL.Image.MAX_IMAGE_PIXELS`` sets, for all decoders."""
    from PIL import Image

    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def _declared_pixels(content: bytes) -> int | None:
    """Read from the header how many pixels there will be, before any is decoded."""
    if content.startswith((b'II', b'MM')):
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        try:
            tags = ImageFileDirectory_v2(content[:8])
            file = io.BytesIO(content)
            file.seek(tags.next)
            tags.load(file)
            return int(tags[256]) * int(tags[257])
        except Exception:  # Pillow's reader of tags fails in many ways; then there is no size
            return None
    if content.startswith(b'\x76\x2f\x31\x01'):
        found = content.find(b'dataWindow\0box2i\0')
        box = content[found + 21 : found + 37]
        if found < 0 or len(box) < 16:
            return None
        left, top, right, bottom = struct.unpack('<4i', box)
        return (right - left + 1) * (bottom - top + 1)
    head = content[:4096].decode('latin1')
    header = re.search(r'[-+][XY] (\d{1,9}) [-+][XY] (\d{1,9})|P[Ff]\s(\d{1,9})\s(\d{1,9})\s', head)
    sides = [int(side) for side in header.groups() if side] if header else []
    return sides[0] * sides[1] if sides else None


@contextmanager
def naming_bad_files() -> Iterator[None]:
    """Let mmcv's loading transforms name the image that they fail on.

    Some decoders return nothing or raise about a buffer, deep in a worker. Inside
    this context the first file of a sample that cannot be decoded is named in a
    :class:`UserError`; worker processes inherit that where they are forked, and
    other failures pass unchanged.
    """
    from mmcv.transforms import BaseTransform

    call = BaseTransform.__call__

    def checked(self, results):
        try:
            if type(self).__name__ == 'LoadImageFromFile' and isinstance(results, dict):
                _refuse_bombs(results)
            loaded = call(self, results)
            if type(self).__name__.startswith('Load') and isinstance(loaded, dict):
                _compare_sizes(loaded, type(self).__name__ == 'LoadAnnotations')
                _refuse_no_numbers(loaded)
            return loaded
        except UserError:
            raise
        except Exception as error:
            if type(self).__name__.startswith('Load') and isinstance(results, dict):
                _name_bad_file(results, error)
            raise

    BaseTransform.__call__ = checked
    try:
        yield
    finally:
        BaseTransform.__call__ = call


def _refuse_bombs(results: dict) -> None:
    """Refuse an image by the size in its header; OpenCV decodes six times what Pillow does."""
    from PIL import Image

    path = results.get('img_path')
    if not isinstance(path, (str, os.PathLike)) or '://' in os.fspath(path):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # above half of the limit Pillow warns
            with Image.open(path):
                return
    except Image.DecompressionBombError as error:
        raise UserError(
            f'the dataset names {path}, which is too large ({error}); cut it into pieces, or raise '
            'PIL.Image.MAX_IMAGE_PIXELS if it is meant.'
        ) from None
    except Exception:  # what is wrong otherwise shows when it is decoded
        return


def _refuse_no_numbers(results: dict) -> None:
    image = results.get('img')
    if isinstance(image, np.ndarray) and image.dtype.kind == 'f' and not np.isfinite(image).all():
        raise UserError(
            f'the image {results.get("img_path")} holds pixels that are NaN or infinite; replace '
            'it, or take it out of the list of images.'
        )


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
        if isinstance(path, (str, os.PathLike)) and '://' not in os.fspath(path):
            reason = validate_image(path)
            if reason:
                raise UserError(
                    f'the dataset names {path}, which {reason}; replace it, or take it out of '
                    'the list of images.'
                ) from error
