"""Masks in the layouts of tools, and masks whose values are no indices: colors, 0 and 255."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from coc_mm.datasets.labels.folder import Folder, choose_splits, split_of
from coc_mm.datasets.labels.objects import listed_splits
from coc_mm.datasets.mask_values import UNLABELED, mask_values
from coc_mm.utils.atomic_io import atomic_write
from coc_mm.utils.cache import cache_folder

__all__ = ['color_table', 'find_masks', 'index_masks', 'paint_masks', 'write_pairs']

Pairs = list[tuple[str, str]]
_TABLE_NAMES = re.compile(r'label_?map|class_?dict|colou?r|palette|classes', re.IGNORECASE)
_ROWS = (
    r'(?P<name>[^:#,]+?)\s*[:,]\s*(?P<r>\d+)\s*,\s*(?P<g>\d+)\s*,\s*(?P<b>\d+)\s*(:.*)?',
    r'(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)[\s,]+(?P<name>.+?)\s*',
)
_VOID = (224, 224, 192)  # around the objects of Pascal VOC


def find_masks(folder: Folder) -> tuple[str, dict[str, Pairs], list[str]] | None:
    """Find images and their masks as Roboflow, VOC, CVAT or SegNet lay them out.

    Returns the format, pairs of paths by split, and names of the classes if there are any.
    """
    pngs, stems = folder.ending('.png', '.bmp', '.tif', '.tiff'), defaultdict(list)
    for name in folder.images:
        stems[Path(name).stem].append(name)
    lists = listed_splits(folder, 'segmentation')
    roboflow = {name: name[: -len('_mask.png')] for name in folder.ending('_mask.png')}

    def of_roboflow(mask: str) -> str | None:
        start = roboflow.get(mask)
        beside = stems[Path(start).name] if start else ()
        return next((x for x in beside if x.rsplit('.', 1)[0] == start), None)

    def of_voc(mask: str) -> str | None:
        parts = mask.casefold().split('/')
        if not any(p.startswith('segmentationclass') and 'visual' not in p for p in parts[:-1]):
            return None
        beside = [x for x in stems[Path(mask).stem] if 'segmentation' not in x.casefold()]
        return beside[0] if len(beside) == 1 else None

    def of_segnet(mask: str) -> str | None:
        parent, _, base = mask.rpartition('/')
        if not parent.casefold().endswith('annot'):
            return None
        start = f'{parent[: -len("annot")]}/{base.rsplit(".", 1)[0]}.'
        return next((x for x in stems[Path(mask).stem] if x.startswith(start)), None)

    ways: dict[str, Callable[[str], str | None]]
    ways = {'Roboflow masks': of_roboflow, 'VOC masks': of_voc, 'SegNet': of_segnet}
    for name, image_of in ways.items():
        pairs = [(image, mask) for mask in pngs if (image := image_of(mask))]
        if not pairs:
            continue
        splits = defaultdict(list)
        for image, mask in pairs:
            listed = lists.get(Path(mask).stem, None if lists else split_of(str(Path(mask).parent)))
            if listed or not lists:
                splits[listed or 'train'].append((image, mask))
        chosen = {split: splits[source] for split, source in choose_splits(splits).items()}
        return name, chosen, _names(folder)
    return None


def _names(folder: Folder) -> list[str]:
    """The classes, by Roboflow's ``_classes.csv`` or labelme2voc's ``class_names.txt``."""
    for file in folder.ending('_classes.csv'):
        rows = [row.split(',', 1) for row in folder.text(file).splitlines()[1:] if ',' in row]
        if rows and all(row[0].strip().isdigit() for row in rows):
            known = {int(row[0]): row[1].strip() for row in rows}
            return [known.get(i, str(i)) for i in range(max(known) + 1)]
    for file in folder.ending('class_names.txt'):
        names = [line.strip() for line in folder.text(file).splitlines()]
        return [name for name in names if name and name != '__ignore__']
    return []


def color_table(folder: Folder) -> dict[str, tuple[int, int, int]]:
    """The color of each class, of ``labelmap.txt``, ``class_dict.csv`` and the like."""
    for file in folder.ending('.txt', '.csv'):
        if not _TABLE_NAMES.search(Path(file).name):
            continue
        rows = [line.strip() for line in folder.text(file).splitlines()]
        found = [
            next((m for form in _ROWS if (m := re.fullmatch(form, row))), None) for row in rows
        ]
        table = {m['name'].strip(): (int(m['r']), int(m['g']), int(m['b'])) for m in found if m}
        if table and all(max(color) <= 255 for color in table.values()):
            if (0, 0, 0) not in table.values():
                table = {'background': (0, 0, 0), **table}
            return table
    return {}


def index_masks(
    files: list[Path], folder: Folder, classes: list[str] | None
) -> tuple[list[Path], list[str] | None, list[str]]:
    """Give masks that hold colors, or few values far apart, copies in the cache with indices.

    Returns the files to use, names of the classes where the values tell them, and remarks.
    """
    table = color_table(folder)
    modes = {_mode(file) for file in files} if table else set()
    if table and modes <= {'RGB', 'RGBA', 'P'} and not (modes == {'P'} and _is_index(files, table)):
        known = {_code(color): i for i, color in enumerate(table.values())}
        known.setdefault(_code(_VOID), UNLABELED)
        used = [_converted(file, known, _codes) for file in files]
        return used, list(table), [f'{len(files)} masks of colors are read by their table']
    if modes == {'P'} and _is_index(files, table):
        return files, list(table), []
    gray, read = True, _values
    try:
        names = [str(file) for file in files]
        values = sorted(set().union(*mask_values(folder.root, names).values()))
        if len(values) > 1 and not _is_sparse(values):
            return files, None, []
    except ValueError:
        gray, read = False, _codes
        if not {_mode(file) for file in files} <= {'RGB', 'RGBA'}:
            raise
    values = sorted({int(v) for file in files for v in np.unique(read(file))})
    if not gray:
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
    sparse = even or _is_sparse(rest)
    if gray and (not sparse or (classes and len(classes) > rest[-1])):
        return files, None, []
    known = {v: i if sparse else v for i, v in enumerate(rest)}
    known.setdefault(UNLABELED, UNLABELED)
    if not gray:
        known = {_code((v, v, v)): i for v, i in known.items()}
    used = [_converted(file, known, read) for file in files]
    if not sparse:
        return used, None, []
    names = ['background', 'foreground'] if rest == [0, 255] else [str(v) for v in rest]
    said = f'the masks hold the values {", ".join(map(str, rest[:8]))} alone, read as 0, 1, ...'
    return used, names, [said]


def _is_sparse(values: list[int]) -> bool:
    """Whether values are too few and too high for indices."""
    return len(values) > 1 and values[-1] >= max(20, 3 * len(values))


def _mode(file: Path) -> str:
    try:
        with Image.open(file) as mask:
            return mask.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 'none'  # said by who reads the values


def _is_index(files: list[Path], table: dict[str, tuple]) -> bool:
    """Whether the palette of the masks is the table, in its order."""
    with Image.open(files[0]) as mask:
        colors = list(mask.getpalette() or [])
    return colors[: 3 * len(table)] == [v for color in table.values() for v in color]


def _code(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _values(file: Path) -> np.ndarray:
    with Image.open(file) as mask:
        values = np.asarray(mask, dtype=np.int64)
        return values * 255 if mask.mode == '1' else values


def _codes(file: Path) -> np.ndarray:
    with Image.open(file) as mask:
        rgb = np.asarray(mask.convert('RGB'), dtype=np.int64)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def _converted(file: Path, known: dict[int, int], read: Callable[[Path], np.ndarray]) -> Path:
    stat = file.stat()
    key = json.dumps([str(file.resolve()), stat.st_size, stat.st_mtime_ns, sorted(known.items())])
    copy = cache_folder('index_masks') / f'{file.stem}-{sha256(key.encode()).hexdigest()[:16]}.png'
    if not copy.exists():
        values, places = np.unique(read(file), return_inverse=True)
        unknown = [int(v) for v in values if int(v) not in known]
        if unknown:
            v = unknown[0]
            color = f'{v >> 16},{v >> 8 & 255},{v & 255}' if read is _codes else str(v)
            raise ValueError(
                f'mask {file} holds {color}, which is no class of the table; add it there, or save '
                'the mask without compression that changes colors.'
            )
        indices = np.array([known[int(v)] for v in values], np.uint8)
        _save(copy, indices[places.reshape(-1)].reshape(_values_shape(file)))
    return copy


def _values_shape(file: Path) -> tuple[int, int]:
    with Image.open(file) as mask:
        return mask.size[::-1]


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
        key = json.dumps([str(images / image['file_name']), size, found, sorted(indices.items())])
        name = f'{Path(image["file_name"]).stem}-{sha256(key.encode()).hexdigest()[:16]}.png'
        copy = cache_folder('index_masks') / name
        if not copy.exists():
            mask = np.zeros(size, np.uint8)
            for entry in found:
                runs = entry['segmentation']
                if isinstance(runs, list) or isinstance(runs['counts'], list):
                    runs = frPyObjects(runs, *size)
                    runs = merge(runs) if isinstance(runs, list) else runs
                mask[decode(runs) > 0] = 255 if entry['iscrowd'] else indices[entry['category_id']]
            _save(copy, mask)
        pairs.append((str(images / image['file_name']), str(copy)))
    return pairs


def write_pairs(pairs: list[tuple[str, str]]) -> Path:
    """Write a list of images and masks, as :class:`ImageMaskFolders` reads it."""
    text = '\n'.join(f'{image}\t{mask}' for image, mask in pairs)
    file = cache_folder('index_masks') / f'{sha256(text.encode()).hexdigest()[:16]}.txt'
    with atomic_write(file) as path:
        path.write_text(text, encoding='utf-8')
    return file
