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

from coc_mm.datasets.labels.folder import Export, Folder, shown_size, split_of
from coc_mm.utils.images import IMAGE_SUFFIXES

__all__ = ['FORMATS', 'listed_splits', 'read_objects']


def read_objects(folder: Folder, name: str | None = None) -> tuple[str, Export] | None:
    """Read a folder in a format, or in the first whose files lie there; None if none does."""
    for known, read in FORMATS.items():
        if name in (None, known):
            export = read(folder)
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


def _ellipse(x: float, y: float, rx: float, ry: float) -> list[float]:
    turns = (2 * math.pi * i / 36 for i in range(36))
    return [v for t in turns for v in (x + rx * math.cos(t), y + ry * math.sin(t))]


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    return [x1, y1, x2, y1, x2, y2, x1, y2]


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
    pairs = {}
    for image in folder.images:
        text = image.rsplit('.', 1)[0].casefold() + '.txt'
        parts = text.split('/')
        places = [text] + [
            '/'.join([*parts[:i], 'labels', *parts[i + 1 :]])
            for i, part in enumerate(parts[:-1])
            if part == 'images'
        ]
        pairs[image] = next((files[x] for x in places if x in files), None)
    found = [text for text in pairs.values() if text]
    first = next((row for text in found for row in folder.text(text).splitlines() if row), '')
    if not found or (names is None and not re.fullmatch(r'\d+( -?[\d.e+-]+){4,}', first.strip())):
        return None
    export = Export(names or ())
    for image, text in pairs.items():  # type: ignore[assignment]
        rows = folder.text(text).splitlines() if text else []
        size = shown_size(folder.root / image) if rows else (1, 1)
        entries = []
        for number, row in enumerate(rows, 1):
            where = f'{folder.root / str(text)}, line {number}'
            if row.strip():
                entries.append(_yolo_entry(row.split(), size, names, keypoints, where))
        export.add(image, entries)
    if not export.names:
        labels = {int(e['label']) for entries in export.images.values() for e in entries}
        export.names = [str(i) for i in range(max(labels, default=-1) + 1)]
    return export


def _yolo_entry(row: list[str], size: tuple, names: Any, keypoints: bool, where: str) -> dict:
    try:
        label, values = int(float(row[0])), [float(v) for v in row[1:]]
    except ValueError:
        raise ValueError(f'{where} is no YOLO label: {" ".join(row):.60}') from None
    if keypoints or len(values) == 5:  # a confidence stands last
        values = values[:4]
    if len(values) < 4 or len(values) % 2 or not all(-0.5 <= v <= 1.5 for v in values):
        raise ValueError(
            f'{where}: a class and x, y, width, height, or the points of a polygon, all as shares '
            f'of the image (0 to 1), are due, got {" ".join(row):.60}'
        )
    if names and not 0 <= label < len(names):
        raise ValueError(f'{where} is of class {label}; the {len(names)} names are {names[:8]}')
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
        try:
            tree = ElementTree.fromstring((folder.root / file).read_bytes())
        except ElementTree.ParseError as error:
            raise ValueError(f'{folder.root / file} is no XML: {error}') from None
        if tree.tag == tag:
            yield file, tree


def _read_voc(folder: Folder) -> Export | None:
    export, listed = Export(), listed_splits(folder, 'main')
    for file, tree in _xml_files(folder, 'annotation'):
        stem = Path(file).stem
        image = folder.image(stem, file) or folder.image(tree.findtext('filename'), file)
        entries = []
        for item in tree.iter('object'):
            box: Any = item.find('bndbox')
            polygon: Any = item.find('polygon')
            try:
                corners = [float(box.findtext(k)) for k in ('xmin', 'ymin', 'xmax', 'ymax')]
                points = [float(child.text) for child in polygon] if polygon is not None else []
            except (AttributeError, TypeError, ValueError):
                raise ValueError(
                    f'{folder.root / file}: an object has no bndbox with xmin, ymin, xmax and ymax'
                ) from None
            name = (item.findtext('name') or '').strip()
            if not name:
                raise ValueError(f'{folder.root / file}: an object has no name')
            crowd = int((item.findtext('difficult') or '0').strip() == '1')
            entries.append(_entry(name, [points] if points else (), corners, crowd=crowd))
        if listed and stem not in listed:
            export.left_out['images that no list of ImageSets names'] += 1
        else:
            export.add(image, entries, listed.get(stem))
    return export


def listed_splits(folder: Folder, kind: str) -> dict[str, str]:
    """Splits of stems, as ``ImageSets/Main/train.txt`` and others list them."""
    found: dict[str, str] = {}
    for file in folder.ending('.txt'):
        parts = file.casefold().split('/')
        if 'imagesets' not in parts or kind not in parts or '_' in parts[-1]:
            continue
        split = split_of(parts[-1]) or 'train'
        for line in folder.text(file).splitlines():
            if line.strip() and (parts[-1] != 'trainval.txt' or line.split()[0] not in found):
                found[Path(line.split()[0]).stem] = split
    return found


def _read_cvat(folder: Folder) -> Export | None:
    export = Export()
    for file, tree in _xml_files(folder, 'annotations'):
        if tree.find('track') is not None:
            raise ValueError(
                f'{folder.root / file} holds tracks of a video; export it as "CVAT for images", '
                'with the images.'
            )
        export.names += [x for x in (e.text for e in tree.iterfind('.//label/name')) if x]
        for image in tree.iter('image'):
            size = int(image.get('width', 0)), int(image.get('height', 0))
            entries = []
            for item in image:
                entry = _cvat_entry(item, size)
                if entry is None and item.tag != 'tag':
                    export.left_out[f'annotations of the kind {item.tag}'] += 1
                elif entry is not None:
                    entries.append(entry)
            subset = split_of(image.get('subset', ''))
            export.add(folder.image(image.get('name'), file), entries, subset)
    export.names = list(dict.fromkeys(export.names))
    return export


def _cvat_entry(item: ElementTree.Element, size: tuple[int, int]) -> dict | None:
    label, value = item.get('label'), item.get
    if item.tag == 'box':
        return _entry(label, box=[value(k) for k in ('xtl', 'ytl', 'xbr', 'ybr')])
    if item.tag == 'polygon':
        return _entry(label, [re.split('[,;]', value('points', ''))])
    if item.tag == 'ellipse':
        return _entry(label, [_ellipse(*(float(value(k, 0)) for k in ('cx', 'cy', 'rx', 'ry')))])
    if item.tag == 'mask':
        left, top, width, height = (int(value(k, 0)) for k in ('left', 'top', 'width', 'height'))
        runs = [int(v) for v in value('rle', '').split(',')]
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        return _mask_entry(label, flat.reshape(height, width), left, top, size)
    return None


def _json_files(folder: Folder) -> Iterator[tuple[str, dict]]:
    for file in folder.ending('.json'):
        try:
            content = json.loads(folder.text(file))
        except ValueError:
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
        objects: dict[Any, dict] = {}
        for index, shape in enumerate(content['shapes']):
            entry = _labelme_entry(shape, folder.root / image) if image else None
            if entry is None:
                kind = f'shapes of the kind {shape.get("shape_type")}'
                export.left_out[kind] += bool(image)
                continue
            group = shape.get('group_id')
            key = index if group is None or shape.get('shape_type') == 'mask' else ('group', group)
            known = objects.get((entry['label'], key))
            if known:  # parts of one object
                polygons = known['segmentation'] + entry['segmentation']
                entry = _entry(entry['label'], polygons)
            objects[entry['label'], key] = entry
        export.add(image, objects.values())
    return export


def _labelme_entry(shape: dict, image: Path) -> dict | None:
    label, points, kind = shape.get('label'), shape.get('points'), shape.get('shape_type')
    flat = [float(v) for point in points or () for v in point]
    if kind == 'mask':
        crop = Image.open(io.BytesIO(base64.b64decode(shape['mask'])))
        return _mask_entry(
            label, np.asarray(crop), round(flat[0]), round(flat[1]), shown_size(image)
        )
    if kind == 'rectangle' and len(flat) == 4:
        flat = _rectangle(*flat)
    elif kind == 'circle' and len(flat) == 4:
        radius = math.dist(flat[:2], flat[2:])
        flat = _ellipse(flat[0], flat[1], radius, radius)
    elif kind not in ('polygon', 'rectangle', 'oriented_rectangle', None):
        return None
    return _entry(label, [flat]) if len(flat) >= 6 else None


def _read_via(folder: Folder) -> Export | None:
    export = Export()
    for file, content in _json_files(folder):
        items = content.get('_via_img_metadata', content).values()
        for item in items:
            if not isinstance(item, dict) or not {'filename', 'regions'} <= item.keys():
                break
            regions = item['regions']
            entries = []
            for region in regions.values() if isinstance(regions, dict) else regions:
                polygon = _via_polygon(region.get('shape_attributes') or {})
                if polygon is None:
                    kind = (region.get('shape_attributes') or {}).get('name')
                    export.left_out[f'regions of the kind {kind}'] += 1
                else:
                    label = _via_label(region.get('region_attributes') or {})
                    entries.append(_entry(label, [polygon]))
            export.add(folder.image(item['filename'], file), entries)
    return export


def _via_polygon(shape: dict) -> list[float] | None:
    kind = shape.get('name')
    if kind == 'polygon':
        pairs = zip(shape['all_points_x'], shape['all_points_y'], strict=True)
        flat = [v for pair in pairs for v in pair]
        return flat if len(flat) >= 6 else None
    if kind == 'rect':
        x, y = shape['x'], shape['y']
        return _rectangle(x, y, x + shape['width'], y + shape['height'])
    if kind in ('circle', 'ellipse'):
        rx, ry = (shape[key if key in shape else 'r'] for key in ('rx', 'ry'))
        return _ellipse(shape['cx'], shape['cy'], rx, ry)
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


_BOX_COLUMNS = ('xmin', 'ymin', 'xmax', 'ymax')


def _read_csv(folder: Folder) -> Export | None:
    export = Export()
    for file in folder.ending('.csv'):
        rows = [row for row in csv.reader(folder.text(file).splitlines()) if row]
        header = [cell.strip().casefold() for cell in rows[0]] if rows else []
        if {'filename', 'class', *_BOX_COLUMNS} <= set(header):
            rows = rows[1:]
        elif header and len(header) == 6 and header[0].endswith(IMAGE_SUFFIXES):
            header = ['filename', *_BOX_COLUMNS, 'class']
        else:
            continue
        for number, row in enumerate(rows, 1):
            cells = dict(zip(header, row, strict=False))
            image = folder.image(cells['filename'], file)
            entries = []
            if cells.get('class', '').strip():
                try:
                    entries = [_entry(cells['class'], box=[cells[k] for k in _BOX_COLUMNS])]
                except (KeyError, ValueError):
                    raise ValueError(
                        f'{folder.root / file}: annotation {number} is no box: {row}'
                    ) from None
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
