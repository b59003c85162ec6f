"""COCO annotation files: checked, and normalized for training and evaluation alike."""

import json
import math
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock
from mmengine.config import Config

from coc_mm.datasets.custom_config import dicts, inner_datasets
from coc_mm.datasets.folder_datasets import take
from coc_mm.datasets.labels.coco_files import find_coco_files, write_coco
from coc_mm.datasets.labels.folder import Folder, split_of
from coc_mm.utils.cache import cache_folder


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


def read_splits(
    cfg: Config, folder: Folder, with_masks: bool
) -> tuple[dict[str, tuple[Path, Path, dict, Path]], str, list[str]]:
    """Read the COCO files that a folder has, or that are made of its labels.

    Returns by split the file, and what :func:`read_coco` gives; the format; and remarks.
    """
    files, name, remarks = find_coco_files(folder, cfg.get('format'), cfg.get('ann_file'))
    if cfg.get('fold'):
        files.pop('val', None)
    read: dict[str, Any] = {}
    for split, file in files.items():
        place = cfg.get('img_dir')
        place = place if isinstance(place, (str, type(None))) else place[split == 'val']
        images = Folder(folder.root / Path(place).expanduser()) if place else folder
        own = str(file) if name == 'COCO' else str(folder.root)  # rather than a file of the cache
        try:
            *found, more = read_coco(file, with_masks, images)
        except ValueError as error:
            raise ValueError(str(error).replace(str(file), own)) from None
        read[split] = (file, *found)
        remarks += [remark.replace(str(file), own) for remark in more]
    return read, name, remarks


def read_coco(
    file: Path, with_masks: bool, folder: Folder | None = None
) -> tuple[Path, dict, Path, list[str]]:
    """Read a COCO file, and write a normalized copy of it if it is not normal.

    mmdet and pycocotools pass over what is odd, each in its own way. In the copy annotation ids
    count from 1, ``iscrowd`` and ``area`` are set, what tools write in their own way is mended, and
    what cannot be used (boxes without extent, polygons of less than three points) is left out:
    training and evaluation see the same. Images are looked for in ``folder``.

    Returns the file to use, the normalized content, the folder of the images, and remarks. A
    ValueError names the file and the entry that cannot be used.
    """
    try:
        found = json.loads(file.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is not a COCO annotation file: {str(error)[:200]}') from None
    content = _check_entries(file, found)
    lacking = sum(not entry.get('segmentation') for entry in content['annotations'])
    if with_masks and lacking:
        raise ValueError(
            f'{file}: {lacking} of {len(content["annotations"])} annotations have no '
            'segmentation, which Mask R-CNN needs; train on boxes alone with a '
            'retinanet_*_custom.py config.'
        )
    images = _find_images(file, content['images'], folder) if folder else file.parent
    remarks = _mend_categories(content) + _mend_crowds(content['annotations'])
    normal, more = _normalize(file, content, with_masks)
    remarks = [f'custom data: {file}: {remark}' for remark in remarks + more]
    return (file if normal == found else write_coco(normal, file.stem)), normal, images, remarks


def _check_entries(file: Path, content: Any) -> dict:
    """Check what must be there; numbers that are text become numbers."""
    if not isinstance(content, dict):
        raise ValueError(f'{file} is not a COCO annotation file: it holds no object')
    content = dict(content)
    for name, keys in _KEYS.items():
        entries = content.get(name)
        if not entries:
            raise ValueError(f'{file} is not a COCO annotation file: it has no {name}')
        if not isinstance(entries, list):
            raise ValueError(f'{file} is not a COCO annotation file: {name} is no list')
        for entry in entries:
            if not isinstance(entry, dict):
                raise ValueError(f'{file}: {name} holds {entry!r:.40}, which is no object')
        content[name] = entries = [_with_numbers(entry) for entry in entries]
        for index, entry in enumerate(entries):
            for key, (fits, due) in keys.items():
                which = f'{file}: {_which(name, entry, index)}'
                if key not in entry:
                    raise ValueError(f'{which} has no {key}')
                if not fits(entry[key]):
                    raise ValueError(f'{which} has the {key} {entry[key]!r:.60}: {due} is due')
        twice = Counter(e['id'] for e in entries).most_common(1) if 'id' in keys else ()
        if twice and twice[0][1] > 1:
            raise ValueError(f'{file}: two entries of {name} have the id {twice[0][0]}')
    return content


def _with_numbers(entry: dict) -> dict:
    keys = {'id', 'image_id', 'category_id', 'width', 'height', 'bbox', 'area', 'iscrowd'}
    return {key: _number(value) if key in keys else value for key, value in entry.items()}


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(v) for v in value]
    try:
        return value if not isinstance(value, str) else float(value) if '.' in value else int(value)
    except ValueError:
        return value


def _which(name: str, entry: dict, index: int) -> str:
    return f'{_ONE[name]} {entry["id"]!s:.40}' if 'id' in entry else f'{name}[{index}]'


def _find_images(file: Path, images: list[dict], folder: Folder) -> Path:
    """The folder that all names are relative to; or the root, and paths below it are the names."""
    beside = Path(os.path.relpath(file, folder.root)).as_posix()
    names = [posixpath.normpath(image['file_name'].replace('\\', '/')) for image in images]
    split, found = split_of(beside), names

    def find(name: str) -> str:
        there = folder.image(name, beside) or ''
        return there if split in (None, split_of(posixpath.dirname(there)) or split) else ''

    first = find(names[0])
    start = first[: -len(names[0])] if f'/{first}'.endswith(f'/{names[0]}') else ''
    for place in (folder.root / start, file.parent):
        if all(os.path.isfile(place / name) for name in names):
            break
    else:
        place, found = folder.root, [find(name) for name in names]
    if missing := [name for name, x in zip(names, found, strict=True) if not x]:
        if len(missing) == len(names):
            raise ValueError(
                f'{file} names the image {missing[0][:200]}, which is in none of the folders of '
                f"{folder.root}; name the images' folder: --cfg-options img_dir=FOLDER"
            )
        raise ValueError(
            f'{file}: {len(missing)} of {len(names)} images are not in {folder.root}, e.g. '
            f'{missing[0][:200]}; put them there, or take them out of the file.'
        )
    for image, name in zip(images, found, strict=True):
        image['file_name'] = name
    return place


def _mend_categories(content: dict) -> list[str]:
    """Take away categories that only group others, and make one of those of one name."""
    categories, entries, remarks = content['categories'], content['annotations'], []
    used = {entry['category_id'] for entry in entries}
    above = [c.get('supercategory') for c in categories if c.get('supercategory') != 'none']
    kept: dict[str, dict] = {}
    instead = {}
    for category in categories:
        name, number = category['name'], category['id']
        groups = category.get('supercategory') == 'none' and (name in above or number == 0)
        if (
            number not in used
            and len(categories) > 1
            and (groups or name in ('_background_', '__ignore__'))
        ):
            remarks.append(f'the category {name} only groups the others; it is no class.')
        elif name in kept:
            instead[number] = kept[name]['id']
            remarks.append(f'two categories are named {name}; they are one class.')
        else:
            kept[name] = category
    for entry in entries:
        entry['category_id'] = instead.get(entry['category_id'], entry['category_id'])
    content['categories'] = list(kept.values())
    return remarks


def _mend_crowds(entries: list[dict]) -> list[str]:
    """CVAT marks each mask of a brush as a crowd."""
    crowds = [e for e in entries if e.get('iscrowd') and isinstance(e.get('segmentation'), dict)]
    crowds = [e for e in crowds if 'attributes' in e or len(crowds) == len(entries)]
    for entry in crowds:
        entry['iscrowd'] = 0
    says = f'{len(crowds)} masks are marked as crowds by their tool; read as objects.'
    return [says] if crowds else []


def _normalize(file: Path, content: dict, with_masks: bool) -> tuple[dict, list[str]]:
    image_ids, images = _integers(content['images'])
    category_ids, categories = _integers(content['categories'])
    sizes = {image['id']: (image['height'], image['width']) for image in images}
    says: Counter[str] = Counter()
    entries, outlined, wrong = [], 0, []
    for index, entry in enumerate(content['annotations']):
        which = f'{file}: {_which("annotations", entry, index)}'
        for key, known in (('category', category_ids), ('image', image_ids)):
            number = entry[f'{key}_id']
            if number not in known:
                raise ValueError(f'{which} is of {key} {number}, which is not listed')
            entry[f'{key}_id'] = known[number]
        x, y, w, h = entry['bbox']
        height, width = sizes[entry['image_id']]
        if min(w, h) < 1 or min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            says['boxes lie outside of their image or have no extent; they are left out.'] += 1
            continue
        if with_masks:
            try:
                entry['segmentation'] = _usable_mask(entry['segmentation'], [height, width])
            except ValueError as error:
                raise ValueError(f'{which} has a mask that {error}') from None
            if not entry['segmentation']:
                says['masks have no polygon of three points; they are left out.'] += 1
                continue
        entry['iscrowd'] = int(bool(entry.get('iscrowd') or entry.get('ignore')))
        entries.append(entry)
        if extent := _extent(entry.get('segmentation')):
            x1, y1, x2, y2 = extent
            outlined += 1
            beyond = max(x - x1, y - y1, x2 - x - w, y2 - y - h)
            if beyond > 2 + 0.05 * max(x2 - x1, y2 - y1):
                apart = x2 < x or x + w < x1 or y2 < y or y + h < y1
                wrong.append((entry, [x1, y1, x2 - x1, y2 - y1], apart))
    for entry, box, apart in wrong:  # if few lie apart, it is unclear which of both is wrong
        if apart and len(wrong) <= outlined / 2:
            says['boxes lie apart from their polygons; look at them.'] += 1
        else:
            says['boxes do not enclose their polygons; those around the polygons are used.'] += 1
            entry['bbox'] = box
    for entry in entries:
        if not _is_number(entry.get('area')) or entry['area'] <= 0:
            says['areas are not above 0; those of the boxes are used.'] += 'area' in entry
            entry['area'] = entry['bbox'][2] * entry['bbox'][3]
    remarks = [f'{n} of {len(content["annotations"])} {what}' for what, n in says.items() if n]
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


def _extent(mask: Any) -> tuple[float, float, float, float] | None:
    """[x1, y1, x2, y2] around polygons."""
    parts = (
        [p for p in mask if isinstance(p, list) and len(p) >= 6] if isinstance(mask, list) else []
    )
    points = [v for part in parts for v in part]
    if not points or not all(map(_is_number, points)):
        return None
    xs, ys = [v for p in parts for v in p[::2]], [v for p in parts for v in p[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


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


def mend_plain(config: Config) -> list[str]:
    """Let a config's own ``CocoDataset`` and its metrics read a normalized copy of an unsound file.

    Unsound is what mmdet or pycocotools fail on or silently score wrongly; a sound file, such as
    COCO's, is left alone, so that figures compare. Returns remarks.
    """
    loaders = [config.get(f'{split}_dataloader') or {} for split in ('train', 'val', 'test')]
    with_masks = any(step.get('with_mask') for step in dicts(loaders))
    copies: dict[Path, Path] = {}
    remarks = []
    for dataset in (x for loader in loaders for x in inner_datasets(loader.get('dataset') or {})):
        file = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '').resolve()
        if dataset.get('type') not in ('CocoDataset', 'mmdet.CocoDataset') or not file.is_file():
            continue
        if file not in copies:
            copies[file] = file
            stat = file.stat()
            stamp = f'{file} {stat.st_size} {stat.st_mtime_ns} {with_masks}'
            sound = cache_folder('coco') / f'sound-{sha256(stamp.encode()).hexdigest()[:16]}'
            with FileLock(f'{sound}.lock'):  # of several processes one reads, and once
                if not sound.exists() and _is_sound(file, with_masks):
                    sound.touch()
            if not sound.exists():
                copies[file], _, _, more = read_coco(file, with_masks)
                remarks += [remark.removeprefix('custom ') for remark in more]
        if copies[file] != file:
            dataset['ann_file'] = str(copies[file])
    for metric in dicts([config.get('val_evaluator'), config.get('test_evaluator')]):
        file = Path(metric.get('ann_file') or '').resolve()
        if copies.get(file, file) != file:
            metric['ann_file'] = str(copies[file])
    return remarks


def _is_sound(file: Path, with_masks: bool) -> bool:
    try:
        content = json.loads(file.read_bytes())
        entries = content.get('annotations')
        if not entries:  # names of images alone, as of COCO's test set
            return True
        ids = {e['id'] for e in entries if type(e['id']) is int and e['id'] > 0}
        numbers = {x['id'] for key in ('images', 'categories') for x in content[key]}
        masks = [e['segmentation'] for e in entries] if with_masks else []
        return (
            len(ids) == len(entries)
            and all(type(number) is int for number in numbers)
            and all('iscrowd' in entry and 'area' in entry for entry in entries)
            and all(isinstance(m, dict) or any(len(p) >= 6 for p in m) for m in masks)
            and not any(len(p) % 2 for m in masks if isinstance(m, list) for p in m)
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


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
