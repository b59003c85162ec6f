"""WebP and AVIF turned as their EXIF says, which OpenCV does for other formats alone.

Without it a photograph is seen one way by Pillow (masks drawn on it, the demo) and another way by
mmcv's loaders. It can go once OpenCV turns them itself.
"""

import functools
import io
import sys
from typing import Any


def turn_by_exif(module: Any) -> None:
    """Wrap ``imfrombytes`` of ``mmcv.image.io``, which all loaders of mmcv call."""
    plain = module.imfrombytes

    @functools.wraps(plain)
    def imfrombytes(content, flag='color', channel_order='bgr', backend=None):
        by_opencv = (backend or module.imread_backend) == 'cv2' and flag in ('color', 'grayscale')
        if not by_opencv or not is_left_as_stored(content):
            return plain(content, flag, channel_order, backend)
        image = plain(content, f'{flag}_ignore_orientation', 'bgr', backend)
        if image is None:
            return None
        image = turn(image, content)
        if flag == 'color' and channel_order == 'rgb':
            image = image[..., ::-1]
        return image.copy()

    for name in (module.__name__, 'mmcv.image', 'mmcv'):  # the packages may have it already
        if getattr(sys.modules.get(name), 'imfrombytes', None) is plain:
            sys.modules[name].imfrombytes = imfrombytes  # type: ignore[attr-defined]


def is_left_as_stored(content: bytes) -> bool:
    """Tell a file of a format that OpenCV does not turn."""
    kind = bytes(content[4:12])
    return kind.endswith(b'WEBP') or kind.startswith(b'ftypavi')


def turn(image: Any, content: bytes) -> Any:
    """Turn an array (H, W) or (H, W, C) as the EXIF of its file says."""
    orientation = _orientation(content)
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def _orientation(content: bytes) -> int:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.getexif().get(0x0112, 1)
    except Exception:  # a format that Pillow lacks, or a damaged tag: as it is stored
        return 1
