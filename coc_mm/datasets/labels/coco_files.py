"""COCO files in a folder: found, made of other formats, mended, and split."""

import json
import os
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from coc_mm.datasets.folder_datasets import SPLITS, hold_out
from coc_mm.datasets.labels.folder import Export, Folder, choose_splits, shown_size, split_of
from coc_mm.datasets.labels.objects import FORMATS, read_objects
from coc_mm.utils.atomic_io import atomic_write
from coc_mm.utils.cache import cache_folder

__all__ = ['find_coco_files', 'hold_out_coco', 'mend_coco', 'write_coco']


def write_coco(content: dict, stem: str) -> Path:
    """Write a COCO file into the cache, under a name of its own for each content."""
    text = json.dumps(content).encode()
    copy = cache_folder('coco') / f'{stem}-{sha256(text).hexdigest()[:12]}.json'
    if not copy.exists():
        with atomic_write(copy) as path:
            path.write_bytes(text)
    return copy


def find_coco_files(
    root: Path, name: str | None = None, ann_file: Any = None
) -> tuple[dict[str, Path], str, list[str]]:
    """Find a folder's COCO files, or make them of another format.

    Returns files by split ('train', 'val'), the format, and what was left out. ``name`` and
    ``ann_file`` (one file, or one for each split) say what is there.
    """
    if name not in (None, 'coco', *FORMATS):
        raise ValueError(f'format={name}: one of coco, {", ".join(FORMATS)} is due')
    if ann_file:
        listed = [ann_file] if isinstance(ann_file, str) else list(ann_file)
        given = [root / Path(file).expanduser() for file in listed]
        absent = [file for file in given if not file.is_file()]
        if absent:
            raise ValueError(f'ann_file={absent[0]}: there is no such file')
        return dict(zip(('train', 'val'), given, strict=False)), 'COCO', []
    if name in (None, 'coco'):
        files = {split: x for split in SPLITS if (x := _usual_file(root, split))}
        if 'train' in files:
            return files, 'COCO', []
    folder = Folder(root)
    if name in (None, 'coco'):
        found = _search(folder)
        if found:
            return *_chosen(root, found), []
    read = read_objects(folder, name) if name != 'coco' else None
    if read is None:
        expected = name or f'COCO, {", ".join(FORMATS)}'
        raise ValueError(
            f'{root} has no COCO annotations for training, nor others that are known here '
            f'({expected}); it holds {folder.summary()}. annotations/train.json is expected, '
            'e.g., or name the file: --cfg-options ann_file=FILE img_dir=FOLDER'
        )
    name, export = read
    contents, left_out = _to_coco(folder, export)
    files = {split: write_coco(content, split) for split, content in contents.items()}
    return files, name, [f'custom data: {root}: left out: {x}.' for x in left_out]


def _usual_file(root: Path, split: str) -> Path | None:
    there = {
        path.relative_to(root).as_posix().casefold(): path
        for pattern in ('*.json', '*/*.json')
        for path in root.glob(pattern)
    }
    forms = ('annotations/instances_{}.json', 'annotations/{}.json', '{}/_annotations.coco.json')
    places = [form.format(name) for name in SPLITS[split] for form in (*forms, '{}.json')]
    return next((there[place] for place in places if place in there), None)


def _search(folder: Folder) -> dict[str, list[Path]]:
    """Files with a COCO file's entries, by split."""
    found = defaultdict(list)
    for name in folder.ending('.json'):
        file = folder.root / name
        try:
            content = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict) and {'images', 'annotations', 'categories'} <= content.keys():
            found[split_of(name) or 'train'].append(file)
    return found


def _chosen(root: Path, found: dict[str, list[Path]]) -> tuple[dict[str, Path], str]:
    files = {}
    for split, source in choose_splits(found).items():
        if len(found[source]) > 1:
            names = ', '.join(str(file.relative_to(root)) for file in found[source][:4])
            raise ValueError(
                f'{root} has several COCO files for {split}: {names}; choose with '
                '--cfg-options ann_file=FILE or ann_file=[TRAIN,VAL]'
            )
        files[split] = found[source][0]
    return files, 'COCO'


def _to_coco(folder: Folder, export: Export) -> tuple[dict[str, dict], list[str]]:
    labels = Counter(e['label'] for entries in export.images.values() for e in entries)
    names = export.names or sorted(labels)
    names += [label for label in sorted(labels) if label not in names]
    categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    ids = {c['name']: c['id'] for c in categories}
    chosen = choose_splits(export.splits.values())
    contents = {}
    for split, source in chosen.items():
        images: list[dict] = []
        annotations: list[dict] = []
        for name in sorted(n for n, s in export.splits.items() if s == source):
            width, height = shown_size(folder.root / name)
            image = dict(id=len(images) + 1, file_name=name, width=width, height=height)
            if name in export.columns:
                image['row'] = export.columns[name]
            images.append(image)
            for found in export.images[name]:
                entry = {k: v for k, v in found.items() if k != 'label'}
                entry.update(id=len(annotations) + 1, image_id=len(images))
                annotations.append(dict(entry, category_id=ids[found['label']]))
        contents[split] = dict(images=images, annotations=annotations, categories=categories)
    left_out = dict(export.left_out)
    left_out['images without a label file'] = len(set(folder.images) - set(export.images))
    unused = Counter(s for s in export.splits.values() if s not in chosen.values())
    left_out.update({f'images of the split {split}': n for split, n in unused.items()})
    return contents, [f'{n} {what}' for what, n in left_out.items() if n]


def hold_out_coco(content: dict, images: Path, **options: Any) -> dict[str, dict]:
    """Split a COCO file's images into 'train' and 'val', see :func:`hold_out`."""
    images_of = {(image['file_name'], image['id']): image for image in content['images']}
    rows = {name: image.get('row') or image for (name, _), image in images_of.items()}
    column = options.get('group_by')
    if column and any(column in row for row in rows.values()):
        options['group_by'] = {name: str(row.get(column)) for name, row in rows.items()}
    parts = {}
    for part in ('train', 'val'):
        names = hold_out(list(images_of), part, root=images, **options)
        kept = [images_of[name] for name in names]
        ids = {image['id'] for image in kept}
        entries = [entry for entry in content['annotations'] if entry['image_id'] in ids]
        parts[part] = dict(content, images=kept, annotations=entries)
    return parts


def mend_coco(content: Any, folders: list[Path], split: str | None = None) -> tuple[Any, list[str]]:
    """Mend what tools write differently; what is no COCO content is left as it is.

    ``folders`` are those that images may lie in, ``split`` that of the file. Returns
    the content and remarks.
    """
    parts = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part), list) and all(map(_has_ids, content[part])) for part in parts
    ):
        return content, []
    images, entries, categories = ([_with_numbers(x) for x in content[part]] for part in parts)
    remarks: list[str] = []
    for image in images:
        if isinstance(image.get('file_name'), str):
            image['file_name'] = image['file_name'].replace('\\', '/')
    _find_images(images, folders, split)
    used = {entry.get('category_id') for entry in entries}
    above = {c.get('supercategory') for c in categories if c.get('supercategory') != 'none'}
    dropped = [
        c
        for c in categories
        if c.get('id') not in used
        and len(categories) > 1
        and (
            (c.get('supercategory') == 'none' and (c.get('name') in above or c.get('id') == 0))
            or c.get('name') in ('_background_', '__ignore__')
        )
    ]
    for category in dropped:
        remarks.append(f'the category {category["name"]} only groups the others; it is no class.')
    categories = [c for c in categories if c not in dropped]
    categories = _merge_names(categories, entries, remarks)
    crowds = [e for e in entries if e.get('iscrowd') and isinstance(e.get('segmentation'), dict)]
    crowds = [e for e in crowds if 'attributes' in e or len(crowds) == len(entries)]
    for entry in crowds:
        entry['iscrowd'] = 0
    if crowds:
        remarks.append(f'{len(crowds)} masks are marked as crowds by their tool; read as objects.')
    remarks += _mend_boxes(images, entries)
    return dict(content, images=images, annotations=entries, categories=categories), remarks


def _has_ids(entry: Any) -> bool:
    keys = ('id', 'image_id', 'category_id', 'supercategory')
    return isinstance(entry, dict) and not any(
        isinstance(entry.get(key), (list, dict)) for key in keys
    )


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(v) for v in value]
    try:
        return value if not isinstance(value, str) else float(value) if '.' in value else int(value)
    except ValueError:
        return value


def _with_numbers(entry: dict) -> dict:
    keys = ['id', 'image_id', 'category_id', 'width', 'height', 'bbox', 'area', 'iscrowd']
    found = {key: _number(entry[key]) for key in keys if key in entry}
    return {**entry, **found}


def _find_images(images: list[dict], folders: list[Path], split: str | None) -> None:
    """Give images that lie in none of the folders the path of the only one of their name."""
    names = [str(image.get('file_name')) for image in images]
    start = next((x for x in folders if names and os.path.isfile(x / names[0])), None)
    if not folders or (start and all(os.path.isfile(start / name) for name in names)):
        return
    root = folders[-1]
    known = Folder(root)
    for image, name in zip(images, names, strict=True):
        if '\0' in name or 'file_name' not in image or (start and os.path.isfile(start / name)):
            continue
        found = known.image(name, '')
        if found and split_of(str(Path(found).parent)) in (None, split):
            image['file_name'] = os.path.relpath(root / found, start or root)


def _merge_names(categories: list[dict], entries: list[dict], remarks: list[str]) -> list[dict]:
    first: dict[Any, dict] = {}
    instead = {}
    for category in categories:
        kept = first.setdefault(str(category.get('name')), category)
        if kept is not category and kept.get('id') != category.get('id'):
            instead[category.get('id')] = kept.get('id')
            remarks.append(f'two categories are named {kept["name"]}; they are one class.')
    for entry in entries if instead else ():
        entry['category_id'] = instead.get(entry.get('category_id'), entry.get('category_id'))
    return [c for c in categories if c.get('id') not in instead]


def _mend_boxes(images: list[dict], entries: list[dict]) -> list[str]:
    """Replace boxes that their polygons stick out of, unless it is unclear which of both is wrong.

    Boxes that cannot be used at all are left alone.
    """
    sizes = {image.get('id'): (image.get('width'), image.get('height')) for image in images}
    count, wrong = 0, []
    for entry in entries:
        try:
            parts = [polygon for polygon in entry['segmentation'] if len(polygon) >= 6]
            xs, ys = [v for p in parts for v in p[::2]], [v for p in parts for v in p[1::2]]
            x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
            x, y, w, h = entry['bbox']
            width, height = sizes[entry['image_id']]
            if min(w, h) < 1 or min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
                continue
            beyond = max(x - x1, y - y1, x2 - x - w, y2 - y - h)
            if beyond > 2 + 0.05 * max(x2 - x1, y2 - y1):
                apart = x2 < x or x + w < x1 or y2 < y or y + h < y1
                wrong.append((entry, [x1, y1, x2 - x1, y2 - y1], apart))
        except (TypeError, ValueError, KeyError, AttributeError):
            continue  # no polygons, or said by who checks
        count += 1
    rule = len(wrong) > count / 2
    mended = [(entry, box) for entry, box, apart in wrong if rule or not apart]
    for entry, box in mended:
        entry['bbox'] = box
    says = {
        'boxes do not enclose their polygons; those around the polygons are used.': len(mended),
        'boxes lie apart from their polygons; look at them.': len(wrong) - len(mended),
    }
    return [f'{n} of {len(entries)} {what}' for what, n in says.items() if n]
