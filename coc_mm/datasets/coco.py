"""COCO annotation files: checked, and normalised for training and evaluation alike."""

import json
import math
import os
from collections import Counter, defaultdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from coc_mm.utils.atomic_io import atomic_write
from coc_mm.utils.cache import cache_folder

__all__ = ['count_training', 'missing_images', 'read_coco']


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and '\0' not in value


def _is_extent(value: Any) -> bool:
    return _is_number(value) and value >= 1 and value == int(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


_EXPECTED = {
    _is_id: 'a number',
    _is_name: 'text',
    _is_extent: 'a number of pixels',
    _is_box: '[x, y, width, height]',
}
_KEYS = {
    'images': dict(id=_is_id, file_name=_is_name, height=_is_extent, width=_is_extent),
    'annotations': dict(image_id=_is_id, category_id=_is_id, bbox=_is_box),
    'categories': dict(id=_is_id, name=_is_name),
}
_ONE = {'images': 'image', 'annotations': 'annotation', 'categories': 'category'}


def read_coco(file: Path, with_masks: bool) -> tuple[Path, dict, list[str]]:
    """Read a COCO file, and write a normalised copy of it if it is not normal.

    mmdet and pycocotools pass over what is odd, each in its own way: annotation ids below 1 or
    that occur twice, no ``iscrowd``, ``ignore``, an ``area`` of 0, boxes without extent, polygons
    of less than three points. In the copy ids count from 1, ``iscrowd`` and ``area`` are set, and
    what cannot be used is left out, so that training and evaluation see the same.

    Args:
        file (Path): The annotation file; it stays as it is.
        with_masks (bool): Whether masks are needed.

    Returns:
        tuple[Path, dict, list[str]]: The file to use, the normalised content, and remarks.

    Raises:
        ValueError: It is no COCO file, an entry lacks something or names an image or category
            that is not there, or masks are missing.
    """
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is not a COCO annotation file: {str(error)[:200]}') from None
    _check_entries(file, content)
    if with_masks:
        lacking = sum(not entry.get('segmentation') for entry in content['annotations'])
        if lacking:
            raise ValueError(
                f'{file}: {lacking} of {len(content["annotations"])} annotations have no '
                'segmentation, which Mask R-CNN needs; train on boxes alone with a '
                'retinanet_*_custom.py config.'
            )
    normal, remarks = _normalize(file, content, with_masks)
    if normal == content:
        return file, content, remarks
    text = json.dumps(normal).encode()
    copy = cache_folder('coco') / f'{file.stem}-{sha256(text).hexdigest()[:12]}.json'
    if not copy.exists():
        with atomic_write(copy) as path:
            path.write_bytes(text)
    return copy, normal, [f'custom data: {file}: {remark}' for remark in remarks]


def _check_entries(file: Path, content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f'{file} is not a COCO annotation file: it holds no object')
    for name, keys in _KEYS.items():
        entries = content.get(name)
        if not entries:
            raise ValueError(f'{file} is not a COCO annotation file: it has no {name}')
        if not isinstance(entries, list):
            raise ValueError(f'{file} is not a COCO annotation file: {name} is no list')
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(f'{file}: {name} holds {entry!r:.40}, which is no object')
            for key, fits in keys.items():
                if key not in entry:
                    raise ValueError(f'{file}: {_which(name, entry, index)} has no {key}')
                if not fits(entry[key]):
                    raise ValueError(
                        f'{file}: {_which(name, entry, index)} has the {key} {entry[key]!r:.60}: '
                        f'{_EXPECTED[fits]} is due'
                    )
        if name != 'annotations':
            twice = [i for i, count in Counter(e['id'] for e in entries).items() if count > 1]
            if twice:
                raise ValueError(f'{file}: two entries of {name} have the id {twice[0]}')


def _which(name: str, entry: dict, index: int) -> str:
    return f'{_ONE[name]} {entry["id"]!s:.40}' if 'id' in entry else f'{name}[{index}]'


def _normalize(file: Path, content: dict, with_masks: bool) -> tuple[dict, list[str]]:
    image_ids, images = _integers(content['images'])
    category_ids, categories = _integers(content['categories'])
    sizes = {image['id']: (image['height'], image['width']) for image in images}
    entries, lost, cut = [], 0, 0
    for index, found in enumerate(content['annotations']):
        entry = dict(found, image_id=image_ids.get(found['image_id']))
        entry['category_id'] = category_ids.get(found['category_id'])
        for key in ('category', 'image'):
            if entry[f'{key}_id'] is None:
                which = f'{file}: {_which("annotations", found, index)}'
                raise ValueError(f'{which} is of {key} {found[f"{key}_id"]}, which is not listed')
        x, y, w, h = entry['bbox']
        height, width = sizes[entry['image_id']]
        if min(w, h) < 1 or min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            lost += 1
            continue
        if with_masks:
            try:
                entry['segmentation'] = _usable_mask(entry['segmentation'], [height, width])
            except ValueError as error:
                which = _which('annotations', found, index)
                raise ValueError(f'{file}: {which} has a mask that {error}') from None
            if not entry['segmentation']:
                cut += 1
                continue
        entry['iscrowd'] = int(bool(entry.get('iscrowd') or entry.get('ignore')))
        if not _is_number(entry.get('area')) or entry['area'] <= 0:
            entry['area'] = w * h
        entries.append(entry)
    remarks = []
    total = len(content['annotations'])
    if lost:
        remarks.append(
            f'{lost} of {total} boxes lie outside of their image or have no extent; they are left '
            'out.'
        )
    if cut:
        remarks.append(
            f'{cut} of {total} masks have no polygon of three points; they are left out.'
        )
    ids = [entry.get('id') for entry in entries]
    if not all(type(i) is int and i > 0 for i in ids) or len(set(ids)) < len(ids):
        entries = [dict(entry, id=number) for number, entry in enumerate(entries, 1)]
        remarks.append(
            'annotation ids are missing, text, twice or below 1; they are numbered anew.'
        )
    return dict(content, images=images, categories=categories, annotations=entries), remarks


def _integers(entries: list[dict]) -> tuple[dict, list[dict]]:
    """Map ids to integers: themselves, or places where one is text."""
    if all(type(entry['id']) is int for entry in entries):
        return {entry['id']: entry['id'] for entry in entries}, entries
    numbers = {entry['id']: number for number, entry in enumerate(entries, 1)}
    return numbers, [dict(entry, id=numbers[entry['id']]) for entry in entries]


def _usable_mask(mask: Any, size: list[int]) -> Any:
    """Return a mask without polygons that enclose nothing; raise about one that is none."""
    if isinstance(mask, list):
        for polygon in mask:
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
                raise ValueError('is no list of polygons, each [x1, y1, x2, y2, ...]')
        return [p for p in mask if len(p) >= 6 and len(p) % 2 == 0]
    if not isinstance(mask, dict) or not {'size', 'counts'} <= set(mask):
        raise ValueError('is neither polygons nor run lengths (size, counts)')
    if mask['size'] != size:
        raise ValueError(
            f'says its size is {mask["size"]!s:.40}; its image has [height, width] {size}'
        )
    counts = mask['counts']
    if isinstance(counts, list) and sum(filter(_is_number, counts)) != size[0] * size[1]:
        raise ValueError(f'has run lengths that do not fill its {size[0]} x {size[1]} pixels')
    return mask


def count_training(
    file: Path, content: dict, classes: list[str], dataset: dict
) -> tuple[int, list[str]]:
    """Count what mmdet's ``CocoDataset`` will train on.

    Args:
        file (Path): The annotation file, for messages.
        content (dict): Its normalised content.
        classes (list[str]): Names of the categories to train.
        dataset (dict): Settings of the dataset: ``filter_cfg`` and ``indices`` count.

    Returns:
        tuple[int, list[str]]: Number of images, and remarks on what is left out.

    Raises:
        ValueError: Nothing is left.
    """
    names = {c['id']: c['name'] for c in content['categories'] if c['name'] in classes}
    entries = defaultdict(list)
    for entry in content['annotations']:
        if entry['category_id'] in names:
            entries[entry['image_id']].append(entry)
    filters = dataset.get('filter_cfg') or {}
    least = filters.get('min_size', 0)
    large = [i for i in content['images'] if min(i['height'], i['width']) >= least]
    used = [i for i in large if entries[i['id']] or not filters.get('filter_empty_gt')]
    left_out = {
        f'images below {least} pixels (filter_cfg.min_size)': len(content['images']) - len(large),
        'images without boxes (filter_cfg.filter_empty_gt)': len(large) - len(used),
    }
    indices = dataset.get('indices')
    if isinstance(indices, int):
        used = used[:indices] if indices >= 0 else used[indices:]
    elif indices is not None:
        used = [used[i] for i in indices]
    boxes = [entry for image in used for entry in entries[image['id']]]
    learned = Counter(names[e['category_id']] for e in boxes if not e['iscrowd'])
    left_out['boxes of a crowd or to be ignored'] = len(boxes) - sum(learned.values())
    says = ', '.join(f'{count} {what}' for what, count in left_out.items() if count)
    if not learned:
        raise ValueError(
            f'{file}: no box is left to train on, of {len(content["images"])} images'
            + (f': {says}.' if says else '.')
        )
    remarks = [f'custom data: {file}: not trained on: {says}.'] if says else []
    unseen = [name for name in names.values() if name not in learned]
    if unseen:
        remarks.append(
            f'custom data: {file}: no box to train on of {", ".join(unseen[:8])}'
            f'{", ..." if len(unseen) > 8 else ""}; classes=[...] names those to train.'
        )
    return len(used), remarks


def missing_images(folder: Path, content: dict) -> list[str]:
    """Return the names of a COCO file's images that are not in a folder."""

    @cache  # one look into each folder, instead of one at each of many files
    def names_in(parent: Path) -> set[str]:
        try:
            return set(os.listdir(parent))
        except OSError:  # not there, a file, or a name too long for any
            return set()

    paths = [(folder / image['file_name'], image['file_name']) for image in content['images']]
    return [name for path, name in paths if path.name not in names_in(path.parent)]
