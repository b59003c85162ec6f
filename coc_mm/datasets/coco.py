"""COCO annotation files: checked, and normalized for training and evaluation alike."""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from coc_mm.datasets.folder_datasets import split_folder, take
from coc_mm.datasets.labels.coco_files import mend_coco, write_coco
from coc_mm.datasets.labels.folder import split_of

__all__ = [
    'check_categories',
    'coco_folders',
    'coco_images',
    'count_training',
    'missing_images',
    'read_coco',
]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# Whether a value fits, and what is due.
_ID = (lambda x: isinstance(x, (int, str)) and not isinstance(x, bool), 'a number')
_NAME = (lambda x: isinstance(x, str) and bool(x.strip()) and '\0' not in x, 'text')
_EXTENT = (lambda x: _is_number(x) and x >= 1 and x == int(x), 'a number of pixels')
_BOX = (
    lambda x: isinstance(x, list) and len(x) == 4 and all(map(_is_number, x)),
    '[x, y, width, height]',
)
_KEYS = {
    'images': dict(id=_ID, file_name=_NAME, height=_EXTENT, width=_EXTENT),
    'annotations': dict(image_id=_ID, category_id=_ID, bbox=_BOX),
    'categories': dict(id=_ID, name=_NAME),
}
_ONE = {'images': 'image', 'annotations': 'annotation', 'categories': 'category'}


def read_coco(
    file: Path, with_masks: bool, folders: Sequence[Path] = ()
) -> tuple[Path, dict, list[str]]:
    """Read a COCO file, and write a normalized copy of it if it is not normal.

    mmdet and pycocotools pass over what is odd, each in its own way. In the copy annotation ids
    count from 1, ``iscrowd`` and ``area`` are set, and what cannot be used (boxes without extent,
    polygons of less than three points) is left out: training and evaluation see the same. So is
    what tools write in their own way, see :func:`mend_coco`, which looks for images in ``folders``.

    Returns the file to use, the normalized content, and remarks. A ValueError names the file and
    the entry that cannot be used.
    """
    try:
        found = json.loads(file.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is not a COCO annotation file: {str(error)[:200]}') from None
    content, mended = mend_coco(found, list(folders), split_of(f'{file.parent.name}/{file.name}'))
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
    remarks = [f'custom data: {file}: {remark}' for remark in mended + remarks]
    return (file if normal == found else write_coco(normal, file.stem)), normal, remarks


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
            for key, (fits, due) in keys.items():
                which = f'{file}: {_which(name, entry, index)}'
                if key not in entry:
                    raise ValueError(f'{which} has no {key}')
                if not fits(entry[key]):
                    raise ValueError(f'{which} has the {key} {entry[key]!r:.60}: {due} is due')
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
    entries, lost, cut, flat = [], 0, 0, 0
    for index, found in enumerate(content['annotations']):
        entry, which = dict(found), f'{file}: {_which("annotations", found, index)}'
        for key, known in (('category', category_ids), ('image', image_ids)):
            number = found[f'{key}_id']
            if number not in known:
                raise ValueError(f'{which} is of {key} {number}, which is not listed')
            entry[f'{key}_id'] = known[number]
        x, y, w, h = entry['bbox']
        height, width = sizes[entry['image_id']]
        if min(w, h) < 1 or min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            lost += 1
            continue
        if with_masks:
            try:
                entry['segmentation'] = _usable_mask(entry['segmentation'], [height, width])
            except ValueError as error:
                raise ValueError(f'{which} has a mask that {error}') from None
            if not entry['segmentation']:
                cut += 1
                continue
        entry['iscrowd'] = int(bool(entry.get('iscrowd') or entry.get('ignore')))
        if not _is_number(entry.get('area')) or entry['area'] <= 0:
            flat += 'area' in entry
            entry['area'] = w * h
        entries.append(entry)
    why = {
        'boxes lie outside of their image or have no extent': lost,
        'masks have no polygon of three points': cut,
    }
    total = len(content['annotations'])
    remarks = [f'{n} of {total} {what}; they are left out.' for what, n in why.items() if n]
    if flat:
        remarks.append(f'{flat} of {total} areas are not above 0; those of the boxes are used.')
    ids = [entry.get('id') for entry in entries]
    if not all(type(i) is int and i > 0 for i in ids) or len(set(ids)) < len(ids):
        entries = [dict(entry, id=number) for number, entry in enumerate(entries, 1)]
        remark = 'annotation ids are missing, text, twice or below 1; they are numbered anew.'
        remarks.append(remark)
    return dict(content, images=images, categories=categories, annotations=entries), remarks


def _integers(entries: list[dict]) -> tuple[dict, list[dict]]:
    """Map ids to integers: themselves, or places where one is text."""
    if all(type(entry['id']) is int for entry in entries):
        return {entry['id']: entry['id'] for entry in entries}, entries
    numbers = {entry['id']: number for number, entry in enumerate(entries, 1)}
    return numbers, [dict(entry, id=numbers[entry['id']]) for entry in entries]


def _usable_mask(mask: Any, size: list[int]) -> Any:
    """A mask without polygons that enclose nothing; ValueError about one that is none."""
    if isinstance(mask, list):
        for polygon in mask:
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
                raise ValueError('is no list of polygons, each [x1, y1, x2, y2, ...]')
            if any(abs(value) > 10 * max(size) for value in polygon):  # hours in pycocotools
                raise ValueError(f'reaches far beyond its image of [height, width] {size}')
        return [p for p in mask if len(p) >= 6 and len(p) % 2 == 0]
    if not isinstance(mask, dict) or not {'size', 'counts'} <= set(mask):
        raise ValueError('is neither polygons nor run lengths (size, counts)')
    if mask['size'] != size:
        says = f'says its size is {mask["size"]!s:.40}'
        raise ValueError(f'{says}; its image has [height, width] {size}')
    counts = mask['counts']
    if isinstance(counts, list) and (
        not all(_is_number(count) and count >= 0 for count in counts)
        or sum(counts) != size[0] * size[1]
    ):
        raise ValueError(f'has run lengths that do not fill its {size[0]} x {size[1]} pixels')
    return mask


def count_training(
    file: Path, content: dict, classes: list[str], dataset: dict
) -> tuple[int, list[str]]:
    """Count the images that mmdet's ``CocoDataset`` will train on, and remark on the others.

    ``dataset`` holds its settings, of which ``filter_cfg`` and ``indices`` count. A ValueError says
    that nothing is left.
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
    used = take(used, dataset.get('indices'))
    boxes = [entry for image in used for entry in entries[image['id']]]
    learned = Counter(names[e['category_id']] for e in boxes if not e['iscrowd'])
    left_out['boxes of a crowd or to be ignored'] = len(boxes) - sum(learned.values())
    says = ', '.join(f'{count} {what}' for what, count in left_out.items() if count)
    if not learned:
        total = f'{len(content["images"])} images' + (f': {says}' if says else '')
        raise ValueError(f'{file}: no box is left to train on, of {total}.')
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
    names = (image['file_name'] for image in content['images'])
    return [name for name in names if not os.path.isfile(folder / name)]


def check_categories(dataset: dict, classes: Sequence[str]) -> None:
    """Raise a ValueError if a config's ``CocoDataset`` names classes that its file lacks."""
    file = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if not file.is_file():
        return
    text = file.read_text(encoding='utf-8')
    try:  # the last entry of most files, which may be large
        start = text.rindex('"categories"') + len('"categories"')
        listed, _ = json.JSONDecoder().raw_decode(text, text.index('[', start))
        names = [category['name'] for category in listed]
    except (ValueError, TypeError, KeyError):
        return  # said by who reads it
    absent = [name for name in classes if name not in names]
    if absent:
        raise ValueError(
            f'{file} has no category for {len(absent)} of the {len(classes)} classes '
            f'({", ".join(absent[:8])}); it has {", ".join(map(str, names[:8]))}. Name the classes '
            'that it has: metainfo=dict(classes=...) of the dataset, num_classes of the heads.'
        )


def coco_folders(cfg: Config, root: Path, split: str, file: Path) -> list[Path]:
    """The folders that the file names of an annotation file may be relative to."""
    if cfg.get('img_dir'):
        given = cfg.img_dir if isinstance(cfg.img_dir, str) else cfg.img_dir[split == 'val']
        return [root / Path(given).expanduser()]
    places = [file.parent, split_folder(root, split), split_folder(root / 'images', split)]
    return [x for x in (*places, root / 'JPEGImages', root / 'images', root) if x and x.is_dir()]


def coco_images(root: Path, folders: list[Path], file: Path, content: dict) -> Path:
    """Find the folder that the file names of an annotation file are relative to."""
    name = content['images'][0]['file_name']
    folder = next((x for x in folders if os.path.isfile(x / name)), None)
    if folder is None:
        tried = ', '.join(str(os.path.relpath(x, root)) for x in folders)
        which = f'{file} names the image {name[:200]}'
        raise ValueError(
            f"{which}, which is in none of the folders {tried} of {root}; name the images' folder: "
            '--cfg-options img_dir=FOLDER'
        )
    missing = missing_images(folder, content)
    if missing:
        raise ValueError(
            f'{file}: {len(missing)} of {len(content["images"])} images are not in {folder}, e.g. '
            f'{missing[0][:200]}; put them there, or take them out of the file.'
        )
    return folder
