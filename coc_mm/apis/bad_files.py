"""Name the file when a dataset meets one that is not an image."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from coc_mm.apis.errors import UserError

__all__ = ['naming_bad_files', 'why_no_image']

_PATH_KEYS = ('img_path', 'seg_map_path', 'sem_seg_map_path')


def why_no_image(path: str | os.PathLike) -> str | None:
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
    except UnidentifiedImageError:
        return _unless_opencv_reads(path, 'is not an image in a format that can be read')
    except Image.DecompressionBombError as error:
        return f'is too large ({error})'
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three
        return f'is a damaged image ({error})'
    return None


def _unless_opencv_reads(path: str, reason: str) -> str | None:
    """Formats differ between the decoders: EXR, HDR, some TIFF are OpenCV's alone."""
    import mmcv

    with open(path, 'rb') as file:
        content = file.read()
    return reason if mmcv.imfrombytes(content, flag='unchanged') is None else None


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
            loaded = call(self, results)
            if type(self).__name__.startswith('Load') and isinstance(loaded, dict):
                _compare_sizes(loaded, type(self).__name__ == 'LoadAnnotations')
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
            reason = why_no_image(path)
            if reason:
                raise UserError(
                    f'the dataset names {path}, which {reason}; replace it, or take it out of '
                    'the list of images.'
                ) from error
