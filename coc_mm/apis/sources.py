"""What can be predicted on: images, folders, globs, URLs, videos and cameras."""

import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from coc_mm.errors import UserError
from coc_mm.utils.download import download
from coc_mm.utils.images import find_images

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


@dataclass
class Picture:
    """An image to predict on.

    Args:
        name: Of the results: the path below the folder that all files have in common.
        content: The file, or a frame, (H, W, 3) BGR.
        video: Of a frame: the name of its video, or None.
        fps: Of a frame: frames of its video per second.
    """

    name: str
    content: str | np.ndarray
    video: str | None = None
    fps: float = 25.0


def find_sources(items: Sequence[str], leave: Path | None = None) -> list[str]:
    """Replace folders and globs by the images in them, but for those in the folder ``leave``.

    Raises a UserError where there are none.
    """
    found: list[str] = []
    for item in map(os.path.expanduser, items):
        if _is_stream(item) or item.startswith(('http://', 'https://')):
            found.append(item)
        elif not os.path.exists(item) and glob.has_magic(item):
            names = sorted(glob.glob(item, recursive=True))
            found += [
                x for name in names if os.path.isfile(name) for x in find_sources([name], leave)
            ]
            if not names:
                raise UserError(f'nothing matches {item}.')
        else:
            found += map(str, find_images(item, leave))
    return list(dict.fromkeys(found))


def _is_stream(item: str) -> bool:
    """A video file, or the number of a camera."""
    if os.path.exists(item):
        return item.lower().endswith(VIDEO_SUFFIXES)
    return item.isdigit()


def read_sources(found: Sequence[str]) -> Iterator[Picture]:
    """Yield the pictures of what :func:`find_sources` gave; a camera's until it is interrupted."""
    files = [x for x in found if not _is_stream(x) and '://' not in x]
    parents = [str(Path(x).resolve().parent) for x in files]
    common = Path(os.path.commonpath(parents)) if parents else Path()
    with tempfile.TemporaryDirectory() as folder:
        for item in found:
            if _is_stream(item):
                yield from _frames(item)
            elif '://' in item:
                name = unquote(Path(urlsplit(item).path).name) or 'image'
                download(item, Path(folder, name))
                yield Picture(name, str(Path(folder, name)))
            else:
                yield Picture(str(Path(item).resolve().relative_to(common)), item)


def _frames(item: str) -> Iterator[Picture]:
    import cv2

    capture = cv2.VideoCapture(item if os.path.exists(item) else int(item))
    stem = Path(item).stem if os.path.exists(item) else f'camera{item}'
    fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
    try:
        count = 0
        while True:
            good, frame = capture.read()
            if not good:
                break
            yield Picture(f'{stem}/{count:06d}.jpg', frame, stem, fps)
            count += 1
        if not count:
            raise UserError(f'{item} gives no frames: no video that OpenCV reads, or no camera.')
    finally:
        capture.release()
