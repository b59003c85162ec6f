"""What mmdet passes over in silence: entries of a COCO file that no training will see."""

import math
import os
from pathlib import Path
from typing import Any

__all__ = ['check_coco', 'check_masks', 'missing_images']

_ONE = {'images': 'image', 'annotations': 'annotation', 'categories': 'category'}
_LISTS = tuple(_ONE)
_KEYS = {
    'images': ('id', 'file_name', 'height', 'width'),
    'annotations': ('image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and '\0' not in value


def _is_extent(value: Any) -> bool:
    return _is_number(value) and value >= 1 and value == int(value)


_TYPES = {
    **dict.fromkeys(('id', 'image_id', 'category_id'), (_is_id, 'a number')),
    **dict.fromkeys(('file_name', 'name'), (_is_name, 'text')),
    **dict.fromkeys(('height', 'width'), (_is_extent, 'a number of pixels')),
    'area': (_is_number, 'a number'),
}


def _check_entries(file: Path, content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f'{file} is not a COCO annotation file: it holds no object')
    missing = [name for name in _LISTS if not content.get(name)]
    if missing:
        raise ValueError(f'{file} is not a COCO annotation file: it has no {missing[0]}')
    for name in _LISTS:
        if not isinstance(content[name], list):
            raise ValueError(f'{file} is not a COCO annotation file: {name} is no list')
        for entry in content[name]:
            if not isinstance(entry, dict):
                raise ValueError(f'{file}: {name} holds {str(entry)[:40]}, which is no object')
            lacking = [key for key in _KEYS[name] if key not in entry]
            if lacking:
                raise ValueError(f'{file}: {_which(name, entry)} has no {lacking[0]}')
            for key, value in entry.items():
                fits, due = _TYPES.get(key, (None, None))
                if fits is not None and key in _KEYS[name] and not fits(value):
                    raise ValueError(
                        f'{file}: {_which(name, entry)} has the {key} {str(value)[:40]!r}: {due} '
                        'is due'
                    )


def _which(name: str, entry: dict) -> str:
    return f'{_ONE[name]} {str(entry.get("id"))[:40]}'


def _twice(entries: list[dict]) -> Any:
    seen = set()
    for entry in entries:
        if entry['id'] in seen:
            return entry['id']
        seen.add(entry['id'])
    return None


def missing_images(folder: Path, content: dict) -> list[str]:
    """Find the images of a COCO file that are not there, before a run meets them in an hour.

    Args:
        folder (Path): What the file names are relative to.
        content (dict): What the COCO file holds.

    Returns:
        list[str]: Their names.
    """
    there = {}  # one look into each folder, instead of one at each of many files

    def names_in(parent: Path) -> set[str]:
        try:
            return set(os.listdir(parent))
        except OSError:  # not there, a file, or a name too long for any
            return set()

    missing = []
    for image in content['images']:
        path = folder / image['file_name']
        if path.parent not in there:
            there[path.parent] = names_in(path.parent)
        if path.name not in there[path.parent]:
            missing.append(image['file_name'])
    return missing


def check_coco(file: Path, content: Any) -> list[str]:
    """Hold the entries of a COCO file against each other.

    Args:
        file (Path): The annotation file, for messages.
        content: What the file holds.

    Returns:
        list[str]: What will be left out, to be shown: boxes outside of their image or without
        extent.

    Raises:
        ValueError: It is no COCO file, or an entry names an image or category that is not there.
    """
    _check_entries(file, content)
    for name in ('images', 'categories'):
        twice = _twice(content[name])
        if twice is not None:
            raise ValueError(f'{file}: two entries of {name} have the id {twice}')
    images = {image['id']: image for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    lost = 0
    for entry in content['annotations']:
        which = f'{file}: {_which("annotations", entry)}'
        if entry['category_id'] not in categories:
            raise ValueError(f'{which} is of category {entry["category_id"]}, which is not listed')
        image = images.get(entry['image_id'])
        if image is None:
            raise ValueError(f'{which} is of image {entry["image_id"]}, which is not listed')
        box = entry['bbox']
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise ValueError(f'{which} has the bbox {str(box)[:60]}: [x, y, width, height] is due')
        x, y, w, h = box
        inside_w = min(x + w, image['width']) - max(x, 0)
        inside_h = min(y + h, image['height']) - max(y, 0)
        lost += entry['area'] <= 0 or w < 1 or h < 1 or inside_w <= 0 or inside_h <= 0
    if not lost:
        return []
    return [
        f'custom data: {file}: {lost} of {len(content["annotations"])} boxes lie outside of their '
        'image or have no extent; they are left out.'
    ]


def check_masks(file: Path, content: dict) -> None:
    """Hold the masks of a COCO file against their images.

    What rasterises them takes any number for a coordinate or a length, and memory for it.

    Args:
        file (Path): The annotation file, for messages.
        content (dict): What it holds, past :func:`check_coco`.

    Raises:
        ValueError: A mask is missing, of another size than its image, or none.
    """
    entries = content['annotations']
    without = [entry for entry in entries if not entry.get('segmentation')]
    if without:
        raise ValueError(
            f'{file}: {len(without)} of {len(entries)} annotations have no segmentation, which '
            'Mask R-CNN needs; train on boxes alone with a retinanet_*_custom.py config.'
        )
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    for entry in entries:
        reason = _why_no_mask(entry['segmentation'], sizes[entry['image_id']])
        if reason:
            raise ValueError(f'{file}: {_which("annotations", entry)} has a mask that {reason}')


def _why_no_mask(mask: Any, size: tuple[int, int]) -> str | None:
    if isinstance(mask, list):
        far = 10 * max(size)
        for polygon in mask:
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
                return 'is no list of polygons, each [x1, y1, x2, y2, ...]'
            if any(abs(value) > far for value in polygon):
                return f'reaches {max(map(abs, polygon)):.3g} pixels far'
        return None
    if not isinstance(mask, dict) or not {'size', 'counts'} <= set(mask):
        return 'is neither polygons nor run lengths (size, counts)'
    if mask['size'] != [*size]:
        said = str(mask['size'])[:40]
        return f'says its size is {said}; its image has [height, width] {[*size]}'
    counts = mask['counts']
    if isinstance(counts, str):
        counts = _run_lengths(counts)
    numbers = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not numbers or sum(counts) != size[0] * size[1]:
        return f'has run lengths that do not fill its {size[0]} x {size[1]} pixels'
    return None


def _run_lengths(text: str) -> list[int] | None:
    """Decode COCO's text of run lengths: 6 bits a letter, differences to the last but one."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            letter = ord(text[place]) - 48 if place < len(text) else -1
            if not 0 <= letter < 64 or shift > 40:
                return None
            value |= (letter & 31) << shift
            place, shift, more = place + 1, shift + 5, bool(letter & 32)
        if letter & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts
