"""What mmdet passes over in silence: entries of a COCO file that no training will see."""

import math
import os
from pathlib import Path
from typing import Any

__all__ = ['check_coco', 'missing_images']

_ONE = {'images': 'image', 'annotations': 'annotation', 'categories': 'category'}
_LISTS = tuple(_ONE)
_KEYS = {
    'images': ('id', 'file_name', 'height', 'width'),
    'annotations': ('image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
                raise ValueError(f'{file}: {_ONE[name]} {entry.get("id")} has no {lacking[0]}')


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
    missing = []
    for image in content['images']:
        path = folder / image['file_name']
        if path.parent not in there:
            there[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
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
        which = f'{file}: annotation {entry.get("id")}'
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
