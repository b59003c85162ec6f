"""Masks in the layouts of tools, and masks whose values are no indices: colors, 0 and 255."""

import json
import re
from collections import defaultdict
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from coc_mm.datasets.labels.folder import (
    Folder,
    choose_splits,
    class_names,
    listed_splits,
    split_of,
)
from coc_mm.datasets.mask_values import UNLABELED, mask_values, read_mask
from coc_mm.utils.atomic_io import atomic_write
from coc_mm.utils.cache import cache_folder

Pairs = list[tuple[str, str]]
# What of a mask's path, less its suffix, becomes what in that of its image.
_LAYOUTS = (
    ('images and masks', r'(^|/)annotations?/', r'\1images/'),
    ('images and masks', r'(^|/)masks?/', r'\1images/'),
    ('images and masks', r'(^|/)labels?/', r'\1images/'),
    ('Roboflow masks', r'_mask$', ''),
    ('VOC masks', r'^(.*/)?SegmentationClass(?!Vis)[^/]*/(.*/)?', ''),
    ('SegNet', r'(annot|_labels?|_masks?)(?=/[^/]*$)', ''),
)
_ENDS = re.compile('_(mask|label|labels|gt|seg|L)$')
_TABLE_NAMES = re.compile(r'label_?map|class_?dict|colou?r|palette|classes', re.IGNORECASE)
_ROWS = (
    r'(?P<name>[^:#,]+?)\s*[:,]\s*(?P<r>\d+)\s*,\s*(?P<g>\d+)\s*,\s*(?P<b>\d+)\s*(:.*)?',
    r'(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)[\s,]+(?P<name>.+?)\s*',
)
_VOID = (224, 224, 192)  # around the objects of Pascal VOC


def find_masks(folder: Folder) -> tuple[str, dict[str, Pairs], list[str], list[str]] | None:
    """Find images and their masks in one of the layouts.

    Returns the layout, pairs of paths by split, names of the classes if there are any, and what is
    left out; None if there are no masks.
    """
    for suffixes in (('.png', '.bmp', '.tif', '.tiff'), ('.jpg', '.jpeg')):
        for name, pattern, instead in _LAYOUTS:
            masks = {}
            for mask in folder.ending(*suffixes):
                stem, count = re.subn(pattern, instead, _stem(mask), count=1, flags=re.IGNORECASE)
                if count:
                    masks[mask] = _key(stem, name)
            images = {}
            for image in sorted(folder.images, key=lambda x: 'images/' in x.casefold()):
                if image not in masks and 'segmentation' not in image.casefold():
                    images[_key(_stem(image), name)] = image
            masks = {x: key if key in images else _ENDS.sub('', key) for x, key in masks.items()}
            pairs = [(images[key], mask) for mask, key in masks.items() if key in images]
            if pairs and '.jpg' in suffixes:
                raise ValueError(
                    f'the masks of {folder.root}, e.g. {pairs[0][1]}, are JPEG files, whose '
                    'compression smears values at the borders of classes; export masks as PNG.'
                )
            if pairs:
                missing = _without_mask(folder, name, list(images.values()), pairs)
                return name, _by_split(folder, pairs), _names(folder), missing
    return None


def _stem(path: str) -> str:
    return path.rsplit('.', 1)[0]


def _key(stem: str, layout: str) -> str:
    """A path with one name for each split and for images; of VOC the file alone."""
    *parts, name = stem.split('/')
    parts = (
        []
        if layout == 'VOC masks'
        else [re.sub('^(image|img)s?$', 'images', x, flags=re.I) for x in parts]
    )
    return '/'.join([*(split_of(part, whole=True) or part.casefold() for part in parts), name])


def _without_mask(folder: Folder, layout: str, images: list[str], pairs: Pairs) -> list[str]:
    """Say how many images beside those with masks have none; refused where each should have one."""
    beside = {Path(image).parent for image, _ in pairs}
    masked = {image for image, _ in pairs}
    missing = sorted(x for x in images if Path(x).parent in beside and x not in masked)
    if missing and layout == 'images and masks':
        name, there = Path(missing[0]), folder.root / Path(missing[0]).parent
        count = sum(Path(image).parent == name.parent for image in images)
        less = sum(Path(image).parent == name.parent for image in missing)
        raise ValueError(
            f'{less} of {count} images in {there} have no mask of their name, '
            f'e.g. {name.name} needs {name.stem}.png; add the masks, or take the images away.'
        )
    return [f'{len(missing)} images without a mask'] if missing else []


def _by_split(folder: Folder, pairs: Pairs) -> dict[str, Pairs]:
    lists, splits = listed_splits(folder, 'segmentation'), defaultdict(list)
    for image, mask in pairs:
        listed = lists.get(Path(mask).stem) if lists else split_of(str(Path(image).parent), True)
        if listed or not lists:
            found = str(folder.root / image), str(folder.root / mask)
            splits[listed or 'train'].append(found)
    return {split: splits[source] for split, source in choose_splits(splits).items()}


def _names(folder: Folder) -> list[str]:
    """The classes, by Roboflow's ``_classes.csv`` or labelme2voc's ``class_names.txt``."""
    for file in folder.ending('_classes.csv', 'class_names.txt'):
        names = class_names(folder.text(file), file)
        return [name for name in names if name != '__ignore__']
    return []


def color_table(folder: Folder, given: str | None = None) -> dict[str, tuple[int, int, int]]:
    """The color of each class, of a file that is named, ``labelmap.txt``, ``class_dict.csv``..."""
    files = [folder.root / x for x in folder.ending('.txt', '.csv')]
    files = [file for file in files if _TABLE_NAMES.search(file.name)]
    if given:
        files = [Path(given).expanduser(), folder.root / given, *files]
    for file in files:
        rows = folder.text(str(file)).splitlines() if file.is_file() else []
        found = [
            next((m for x in _ROWS if (m := re.fullmatch(x, row.strip()))), None) for row in rows
        ]
        table = {m['name'].strip(): (int(m['r']), int(m['g']), int(m['b'])) for m in found if m}
        if table and all(max(color) <= 255 for color in table.values()):
            return table
    return {}


def index_masks(
    files: list[str], folder: Folder, classes: list[str] | None, given: str | None = None
) -> tuple[list[str], list[str] | None, list[str]]:
    """Give masks that hold colors, or few values far apart, copies in the cache with indices.

    ``given`` is a file that may hold the colors. Returns the files to use, names of the classes
    where the values tell them, and remarks.
    """
    table, found = color_table(folder, given), mask_values(folder.root, files)
    modes, rgb = {mode for mode, _ in found.values()}, {'RGB', 'RGBA'}
    values = sorted(set().union(*(values for _, values in found.values())))
    if table and (0, 0, 0) not in table.values() and (0 in values or 'P' in modes):
        table = {'background': (0, 0, 0), **table}
    if table and modes == {'P'} and _is_index(files[0], table):
        return files, list(table), []
    if table and modes <= {*rgb, 'P'}:
        known = {_code(color): i for i, color in enumerate(table.values())}
        known.setdefault(_code(_VOID), UNLABELED)
        used = [_converted(file, known, True) for file in files]
        return used, list(table), [f'{len(files)} masks of colors are read by their table']
    colors = modes <= rgb
    if not colors and (wrong := [file for file in files if found[file][0] in rgb]):
        raise ValueError(
            f'mask {wrong[0]} has several channels ({found[wrong[0]][0]}): a mask has one channel, '
            'whose values are the indices of the classes (an 8-bit gray or palette PNG).'
        )
    if colors:
        if any(_code((v >> 16,) * 3) != v for v in values):
            shown = ', '.join(f'{v >> 16},{v >> 8 & 255},{v & 255}' for v in values[:6])
            raise ValueError(
                f'the masks, e.g. {files[0]}, have several channels, with the colors {shown}, and '
                'no table tells their classes: add class_dict.csv with a line '
                '"name,red,green,blue" for each.'
            )
        values = [v >> 16 for v in values]
    steps = set(np.diff(values))
    even = len(values) > 1 and values[-1] == 255 and max(steps) - min(steps) <= 1 and min(steps) > 1
    rest = [v for v in values if v != UNLABELED or even]
    # Too few and too high for indices.
    sparse = even or (len(rest) > 1 and rest[-1] >= max(20, 3 * len(rest)))
    if not colors and (not sparse or (classes and len(classes) > rest[-1])):
        return files, None, []
    known = {v: i if sparse else v for i, v in enumerate(rest)}
    known.setdefault(UNLABELED, UNLABELED)
    known = {_code((v, v, v)): i for v, i in known.items()} if colors else known
    used = [_converted(file, known, colors) for file in files]
    if not sparse:
        return used, None, []
    names = ['background', 'foreground'] if rest == [0, 255] else [str(v) for v in rest]
    shown = ', '.join(map(str, rest[:8]))
    said = f'the masks hold the values {shown} alone, read as 0 to {len(rest) - 1}'
    return used, names, [said]


def _is_index(file: str, table: dict[str, tuple]) -> bool:
    """Whether the palette of a mask is the table, in its order."""
    with Image.open(file) as mask:
        colors = list(mask.getpalette() or [])
    return colors[: 3 * len(table)] == [v for color in table.values() for v in color]


def _code(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _converted(file: str, known: dict[int, int], colors: bool) -> str:
    stat = Path(file).stat()
    copy = _copy(file, [stat.st_size, stat.st_mtime_ns, sorted(known.items())])
    if not copy.exists():
        found = read_mask(file, colors)[1]
        values, places = np.unique(found, return_inverse=True)
        unknown = [int(v) for v in values if int(v) not in known]
        if unknown:
            v = unknown[0]
            color = f'{v >> 16},{v >> 8 & 255},{v & 255}' if colors else str(v)
            raise ValueError(
                f'mask {file} holds {color}, which is no class of the table; add it there, or save '
                'the mask without compression that changes colors.'
            )
        indices = np.array([known[int(v)] for v in values], np.uint8)
        _save(copy, indices[places.reshape(found.shape)])
    return str(copy)


def _copy(file: str, content: list) -> Path:
    """The place of a mask in the cache, one for each content."""
    key = json.dumps([str(Path(file).resolve()), *content]).encode()
    return cache_folder('index_masks') / f'{Path(file).stem}-{sha256(key).hexdigest()[:16]}.png'


def _save(copy: Path, mask: np.ndarray) -> None:
    with atomic_write(copy) as path, open(path, 'wb') as stream:
        Image.fromarray(mask).save(stream, 'PNG')


def paint_masks(content: dict, images: Path) -> list[tuple[str, str]]:
    """Paint a COCO file's objects, the large first, into masks: index 1 is its first category."""
    from pycocotools.mask import decode, frPyObjects, merge

    indices = {category['id']: i for i, category in enumerate(content['categories'], 1)}
    entries = defaultdict(list)
    for entry in content['annotations']:
        entries[entry['image_id']].append(entry)
    pairs = []
    for image in content['images']:
        size = image['height'], image['width']
        found = sorted(entries[image['id']], key=lambda e: -e['area'])
        file = str(images / image['file_name'])
        copy = _copy(file, [size, found, sorted(indices.items())])
        if not copy.exists():
            mask = np.zeros(size, np.uint8)
            for entry in found:
                runs = entry['segmentation']
                if isinstance(runs, list) or isinstance(runs['counts'], list):
                    runs = frPyObjects(runs, *size)
                    runs = merge(runs) if isinstance(runs, list) else runs
                mask[decode(runs) > 0] = 255 if entry['iscrowd'] else indices[entry['category_id']]
            _save(copy, mask)
        pairs.append((file, str(copy)))
    return pairs
