"""COCO files in a folder: found, or made of other formats, and split."""

import json
import re
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from coc_mm.datasets.folder_datasets import hold_out
from coc_mm.datasets.labels.folder import Export, Folder, choose_splits, shown_size, split_of
from coc_mm.datasets.labels.objects import FORMATS, read_objects
from coc_mm.utils.atomic_io import atomic_write
from coc_mm.utils.cache import cache_folder
from coc_mm.utils.images import count_suffixes

# Where files of a split are, the preferred first.
_USUAL = (
    r'annotations/instances_(\w+)\.json',
    r'annotations/(\w+)\.json',
    r'(\w+)/_annotations\.coco\.json',
    r'(\w+)\.json',
)


def write_coco(content: dict, stem: str) -> Path:
    """Write a COCO file into the cache, under a name of its own for each content."""
    text = json.dumps(content).encode()
    copy = cache_folder('coco') / f'{stem}-{sha256(text).hexdigest()[:12]}.json'
    if not copy.exists():
        with atomic_write(copy) as path:
            path.write_bytes(text)
    return copy


def find_coco_files(
    folder: Folder, name: str | None = None, ann_file: Any = None
) -> tuple[dict[str, Path], str, list[str]]:
    """Find a folder's COCO files, or make them of another format.

    Returns files by split ('train', 'val'), the format, and what was left out. ``name`` and
    ``ann_file`` (one file, or one for each split) say what is there.
    """
    root = folder.root
    if name not in (None, 'coco', *FORMATS):
        raise ValueError(f'format={name}: one of coco, {", ".join(FORMATS)} is due')
    if ann_file:
        listed = [ann_file] if isinstance(ann_file, str) else list(ann_file)
        given = [root / Path(file).expanduser() for file in listed]
        absent = [file for file in given if not file.is_file()]
        if absent:
            raise ValueError(f'ann_file={absent[0]}: there is no such file')
        return dict(zip(('train', 'val'), given, strict=False)), 'COCO', []
    if name in (None, 'coco') and (found := _search(folder)):
        return {split: root / file for split, file in found.items()}, 'COCO', []
    read = read_objects(folder, name) if name != 'coco' else None
    if read is None:
        expected = name or f'COCO, {", ".join(FORMATS)}'
        raise ValueError(
            f'{root} has no COCO annotations for training, nor others that are known here '
            f'({expected}); it holds {count_suffixes(folder.files) or "no files"}. '
            'annotations/train.json is expected, e.g., or name the file: --cfg-options '
            'ann_file=FILE img_dir=FOLDER'
        )
    name, export = read
    contents, left_out = _to_coco(folder, export)
    files = {split: write_coco(content, split) for split, content in contents.items()}
    return files, name, [f'custom data: {root}: left out: {x}.' for x in left_out]


def _search(folder: Folder) -> dict[str, str]:
    """COCO files by split: those in usual places, or all JSON files with a COCO file's entries."""
    names = folder.ending('.json')
    found: dict[str, list[str]] = defaultdict(list)
    for form in _USUAL:
        for file in names:
            place = re.fullmatch(form, file, re.IGNORECASE)
            if place and (split := split_of(place[1], whole=True)):
                found[split] = found[split] or [file]
    if 'train' not in found:
        found.clear()
        for file in names:
            try:
                content = json.loads(folder.data(file))
            except (ValueError, RecursionError):
                continue
            parts = {'images', 'annotations', 'categories'}
            if isinstance(content, dict) and parts <= content.keys():
                found[split_of(file) or 'train'].append(file)
    chosen = choose_splits(found) if found else {}
    for split, source in chosen.items():
        if len(found[source]) > 1:
            raise ValueError(
                f'{folder.root} has several COCO files for {split}: '
                f'{", ".join(found[source][:4])}; choose with '
                '--cfg-options ann_file=FILE or ann_file=[TRAIN,VAL]'
            )
    return {split: found[source][0] for split, source in chosen.items()}


def _to_coco(folder: Folder, export: Export) -> tuple[dict[str, dict], list[str]]:
    labels = {e['label'] for entries in export.images.values() for e in entries}
    names = [*export.names, *sorted(labels - set(export.names))]
    ids = {name: i for i, name in enumerate(names, 1)}
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
            for entry in export.images[name]:
                more = dict(id=len(annotations) + 1, image_id=image['id'])
                entry = dict(entry, **more, category_id=ids[entry['label']])
                annotations.append({k: v for k, v in entry.items() if k != 'label'})
        categories = [dict(id=i, name=name) for name, i in ids.items()]
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
