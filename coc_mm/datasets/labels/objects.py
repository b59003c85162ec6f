"""Readers of boxes and polygons: YOLO, Pascal VOC, CVAT, LabelMe, VIA and CSV."""

import base64
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

from coc_mm.datasets.labels.folder import Export, Folder, listed_splits, shown_size, split_of
from coc_mm.utils.images import IMAGE_SUFFIXES

_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def read_objects(folder: Folder, name: str | None = None) -> tuple[str, Export] | None:
    """Read a folder in a format, or in the first whose files lie there; None if none does."""
    for known, read in FORMATS.items():
        if name not in (None, known):
            continue
        try:
            export = read(folder)
        except (LookupError, AttributeError, OSError, SyntaxError, TypeError, ValueError) as error:
            kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
            where = '' if str(folder.root) in str(error) else f'{folder.root / folder.reading}, '
            raise ValueError(f'{where}{kind}{str(error)[:300]}') from None
        if export is not None and export.images:
            return known, export
    return None


def _entry(label: Any, polygons: Any = (), box: Any = None, mask: Any = None, crowd=0) -> dict:
    """An annotation; ``box`` is [x1, y1, x2, y2] or that around the polygons."""
    polygons = [[float(v) for v in polygon] for polygon in polygons]
    if box is None:
        xs = [v for polygon in polygons for v in polygon[::2]]
        ys = [v for polygon in polygons for v in polygon[1::2]]
        box = (min(xs), min(ys), max(xs), max(ys))
    x1, x2 = sorted((float(box[0]), float(box[2])))
    y1, y2 = sorted((float(box[1]), float(box[3])))
    entry = dict(label=str(label), bbox=[x1, y1, x2 - x1, y2 - y1], iscrowd=crowd)
    return dict(entry, segmentation=mask or polygons)


def _outline(kind: Any, v: list[float]) -> list[float] | None:
    """The points around a polygon, a rectangle (corners) or an ellipse (center, radii)."""
    if kind == 'rectangle' and len(v) == 4:
        return [v[0], v[1], v[2], v[1], v[2], v[3], v[0], v[3]]
    if kind == 'ellipse':
        turns = [2 * math.pi * i / 36 for i in range(36)]
        return [x for t in turns for x in (v[0] + v[2] * math.cos(t), v[1] + v[3] * math.sin(t))]
    return v if kind == 'polygon' and len(v) >= 6 else None


def _mask_entry(label: Any, crop: np.ndarray, left: int, top: int, size: tuple) -> dict | None:
    """An annotation of a mask that is a part of its image, at (left, top)."""
    from pycocotools.mask import encode, toBbox

    whole = np.zeros(size[::-1], np.uint8, order='F')
    crop = crop[: max(0, size[1] - top), : max(0, size[0] - left)]
    whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop > 0
    if not whole.any():
        return None
    runs = encode(whole)
    x, y, w, h = toBbox(runs)
    runs = dict(size=list(runs['size']), counts=runs['counts'].decode())
    return _entry(label, box=(x, y, x + w, y + h), mask=runs)


def _read_yolo(folder: Folder) -> Export | None:
    names, keypoints = _yolo_names(folder)
    files = {name.casefold(): name for name in folder.ending('.txt')}
    found = {}
    for image in folder.images:
        parts = f'{image.rsplit(".", 1)[0]}.txt'.casefold().split('/')
        folders = [i for i, part in enumerate(parts[:-1]) if part == 'images']
        places = [parts, *([*parts[:i], 'labels', *parts[i + 1 :]] for i in folders)]
        found[image] = next((files[x] for p in places if (x := '/'.join(p)) in files), None)
    rows = {text: folder.text(text).splitlines() for text in found.values() if text}
    first = next((row for lines in rows.values() for row in lines if row), '')
    if not rows or (names is None and not re.fullmatch(r'\d+( -?[\d.e+-]+){4,}', first.strip())):
        return None
    export = Export(names or ())
    for image, text in found.items():
        folder.reading = text or image
        lines = [
            (i, row.split()) for i, row in enumerate(rows.get(text or '', ()), 1) if row.split()
        ]
        size = shown_size(folder.root / image) if lines else (1, 1)
        export.add(image, [_yolo_entry(row, size, names, keypoints, i) for i, row in lines])
    if not export.names:
        labels = {int(e['label']) for entries in export.images.values() for e in entries}
        export.names = [str(i) for i in range(max(labels, default=-1) + 1)]
    return export


def _yolo_entry(row: list[str], size: tuple, names: Any, keypoints: bool, line: int) -> dict:
    text = ' '.join(row)[:60]
    try:
        label, values = int(float(row[0])), [float(v) for v in row[1:]]
    except ValueError:
        raise ValueError(f'line {line} is no YOLO label: {text}') from None
    if keypoints or len(values) == 5:  # a confidence stands last
        values = values[:4]
    if len(values) < 4 or len(values) % 2 or not all(-0.5 <= v <= 1.5 for v in values):
        raise ValueError(
            f'line {line}: a class and x, y, width, height, or the points of a polygon, all as '
            f'shares of the image (0 to 1), are due, got {text}'
        )
    if names and not 0 <= label < len(names):
        raise ValueError(f'line {line} is of class {label}; the {len(names)} names are {names[:8]}')
    values = [v * size[i % 2] for i, v in enumerate(values)]
    text = names[label] if names else str(label)
    if len(values) > 4:
        return _entry(text, [values])
    x, y, w, h = values
    return _entry(text, box=(x - w / 2, y - h / 2, x + w / 2, y + h / 2))


def _yolo_names(folder: Folder) -> tuple[list[str] | None, bool]:
    """The names of the classes, and whether key points follow the boxes."""
    for file in folder.ending('.yaml', '.yml'):
        try:
            content = yaml.safe_load(folder.text(file))
        except yaml.YAMLError:
            continue
        names = content.get('names') if isinstance(content, dict) else None
        if isinstance(names, dict) and names:
            names = [names.get(i, i) for i in range(max(map(int, names)) + 1)]
        if names and isinstance(names, list):
            return [str(name) for name in names], 'kpt_shape' in content
    for file in folder.ending('.names', 'classes.txt'):
        names = [line.strip() for line in folder.text(file).splitlines() if line.strip()]
        if names:
            return names, False
    return None, False


def _xml_files(folder: Folder, tag: str) -> Iterator[tuple[str, ElementTree.Element]]:
    for file in folder.ending('.xml'):
        tree = ElementTree.fromstring(folder.data(file))
        if tree.tag == tag:
            yield file, tree


def _read_voc(folder: Folder) -> Export | None:
    export, listed = Export(), listed_splits(folder, 'main')
    for file, tree in _xml_files(folder, 'annotation'):
        stem = Path(file).stem
        entries = []
        for item in tree.iter('object'):
            box, name = item.find('bndbox'), (item.findtext('name') or '').strip()
            corners = [box.findtext(k) for k in _CORNERS] if box is not None else [None]
            if None in corners or not name:
                raise ValueError('an object lacks a name, or a bndbox with xmin, ymin, xmax, ymax')
            points = [float(child.text or 'nan') for child in item.findall('polygon/*')]
            crowd = int((item.findtext('difficult') or '0').strip() == '1')
            entries.append(_entry(name, [points] if points else (), corners, crowd=crowd))
        if listed and stem not in listed:
            export.left_out['images that no list of ImageSets names'] += 1
        else:
            image = folder.image(stem, file) or folder.image(tree.findtext('filename'), file)
            export.add(image, entries, listed.get(stem))
    return export


def _read_cvat(folder: Folder) -> Export | None:
    export = Export()
    for file, tree in _xml_files(folder, 'annotations'):
        if tree.find('track') is not None:
            raise ValueError(
                'holds tracks of a video; export it as "CVAT for images", with the images.'
            )
        export.names += [x for x in (e.text for e in tree.iterfind('.//label/name')) if x]
        for image in tree.iter('image'):
            size = int(image.get('width', 0)), int(image.get('height', 0))
            entries = [_cvat_entry(item, size) for item in image if item.tag != 'tag']
            kinds = [item.tag for item in image if item.tag != 'tag']
            export.add(
                folder.image(image.get('name'), file),
                export.known(entries, kinds),
                split_of(image.get('subset', '')),
            )
    export.names = list(dict.fromkeys(export.names))
    return export


def _cvat_entry(item: ElementTree.Element, size: tuple[int, int]) -> dict | None:
    label, value = item.get('label'), item.get
    if item.tag == 'box':
        return _entry(label, box=[value(k) for k in ('xtl', 'ytl', 'xbr', 'ybr')])
    if item.tag == 'mask':
        left, top, width, height = (int(value(k, 0)) for k in ('left', 'top', 'width', 'height'))
        runs = [int(v) for v in value('rle', '').split(',')]
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        return _mask_entry(label, flat.reshape(height, width), left, top, size)
    keys = ('cx', 'cy', 'rx', 'ry')
    values = [value(k, 0) for k in keys] if item.tag == 'ellipse' else value('points', '0')
    values = re.split('[,;]', values) if isinstance(values, str) else values
    points = _outline(item.tag, [float(v) for v in values])
    return _entry(label, [points]) if points else None


def _json_files(folder: Folder) -> Iterator[tuple[str, dict]]:
    for file in folder.ending('.json'):
        try:
            content = json.loads(folder.text(file))
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield file, content


def _read_labelme(folder: Folder) -> Export | None:
    export = Export()
    for file, content in _json_files(folder):
        if not isinstance(content.get('shapes'), list):
            continue
        image = folder.image(content.get('imagePath') or Path(file).stem, file)
        image = image or folder.image(Path(file).stem, file)
        shapes = content['shapes'] if image else []
        size = shown_size(folder.root / image) if image else None
        entries = [_labelme_entry(shape, size) for shape in shapes]
        objects: dict[Any, dict] = {}
        for index, (shape, entry) in enumerate(zip(shapes, entries, strict=True)):
            group = shape.get('group_id')
            alone = group is None or shape.get('shape_type') == 'mask'
            key = index if alone else ('group', group, shape.get('label'))
            if entry and key in objects:  # parts of one object
                parts = objects[key]['segmentation'] + entry['segmentation']
                entry = _entry(entry['label'], parts)
            if entry:
                objects[key] = entry
        export.known(entries, [shape.get('shape_type') for shape in shapes])
        export.add(image, objects.values())
    return export


def _labelme_entry(shape: dict, size: Any) -> dict | None:
    label, kind = shape.get('label'), shape.get('shape_type')
    flat = [float(v) for point in shape.get('points') or () for v in point]
    if kind == 'mask':
        crop = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape['mask']))))
        return _mask_entry(label, crop, round(flat[0]), round(flat[1]), size)
    if kind == 'circle':
        kind, flat = 'ellipse', [*flat[:2], *[math.dist(flat[:2], flat[2:])] * 2]
    elif kind in ('oriented_rectangle', None) or (kind == 'rectangle' and len(flat) > 4):
        kind = 'polygon'
    points = _outline(kind, flat)
    return _entry(label, [points]) if points else None


def _read_via(folder: Folder) -> Export | None:
    export = Export()
    for file, content in _json_files(folder):
        for item in content.get('_via_img_metadata', content).values():
            if not isinstance(item, dict) or not {'filename', 'regions'} <= item.keys():
                break
            regions = item['regions']
            regions = list(regions.values()) if isinstance(regions, dict) else regions
            shapes = [region.get('shape_attributes') or {} for region in regions]
            labels = [_via_label(region.get('region_attributes') or {}) for region in regions]
            points = [_via_points(shape) for shape in shapes]
            entries = [_entry(x, [p]) if p else None for x, p in zip(labels, points, strict=True)]
            kinds = [shape.get('name') for shape in shapes]
            export.add(folder.image(item['filename'], file), export.known(entries, kinds))
    return export


def _via_points(shape: dict) -> list[float] | None:
    kind = shape.get('name')
    if kind == 'polygon':
        xs, ys = shape['all_points_x'], shape['all_points_y']
        return _outline(kind, [v for pair in zip(xs, ys, strict=True) for v in pair])
    if kind == 'rect':
        x, y = shape['x'], shape['y']
        return _outline('rectangle', [x, y, x + shape['width'], y + shape['height']])
    if kind in ('circle', 'ellipse'):
        keys = ('cx', 'cy', *(('rx', 'ry') if 'rx' in shape else ('r', 'r')))
        return _outline('ellipse', [shape[key] for key in keys])
    return None


def _via_label(attributes: dict) -> str:
    """The class, under whatever key; 'object' where there is none."""
    usual = ('class', 'label', 'name', 'category', 'type')
    for key in sorted(attributes, key=lambda k: k.casefold() not in usual):
        value = attributes[key]
        if isinstance(value, dict):  # boxes to tick
            value = next((name for name, ticked in value.items() if ticked), '')
        if str(value).strip():
            return str(value).strip()
    return 'object'


def _read_csv(folder: Folder) -> Export | None:
    export = Export()
    for file in folder.ending('.csv'):
        rows = [row for row in csv.reader(folder.text(file).splitlines()) if row]
        header = [cell.strip().casefold() for cell in rows[0]] if rows else []
        if {'filename', 'class', *_CORNERS} <= set(header):
            rows = rows[1:]
        elif len(header) == 6 and header[0].endswith(IMAGE_SUFFIXES):
            header = ['filename', *_CORNERS, 'class']
        else:
            continue
        for number, row in enumerate(rows, 1):
            cells = dict(zip(header, row, strict=False))
            image = folder.image(cells['filename'], file)
            entries = []
            if cells.get('class', '').strip():
                try:
                    entries = [_entry(cells['class'], box=[cells[k] for k in _CORNERS])]
                except (KeyError, ValueError):
                    raise ValueError(f'annotation {number} is no box: {row}') from None
            export.add(image, entries, split_of(file) or split_of(image or ''))
            if image:
                export.columns[image] = cells
    return export


#: In this order they are looked for.
FORMATS: dict[str, Callable[[Folder], Export | None]] = {
    'yolo': _read_yolo,
    'voc': _read_voc,
    'cvat': _read_cvat,
    'labelme': _read_labelme,
    'via': _read_via,
    'csv': _read_csv,
}
