"""Your own data: complete a ``*_custom.py`` config from what lies in ``data_root``.

mmengine applies ``--cfg-options`` when the config file has long been evaluated, so a file cannot
compute from ``data_root``. :func:`resolve_custom` does it afterwards: it finds splits and classes
and writes them into datasets, heads and metrics.
"""

import colorsys
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import METRICS

from coc_mm.datasets.coco import count_training, missing_images, read_coco
from coc_mm.datasets.folder_datasets import (
    SPLITS,
    check_no_splits,
    hold_out,
    list_class_folders,
    other_splits,
    pair_masks,
    split_folder,
    take,
)
from coc_mm.datasets.mask_values import mask_values
from coc_mm.utils.images import IMAGE_SUFFIXES, count_suffixes, list_files, list_images

__all__ = ['inner_datasets', 'resolve_custom', 'set_classes']

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Settings of a dataset that say where the data lie, which are found out.
_FOUND = ('type', 'data_root', 'ann_file', 'data_prefix', 'metainfo', 'split')


def resolve_custom(cfg: Config) -> list[str]:
    """Complete a config for own data, in place; any other config is left alone.

    A second call changes nothing. The entries of the config that count, all at the top level:

    - ``custom_data``: the kind of data, 'class_folders', 'coco' or 'image_masks'.
    - ``data_root``: the folder.
    - ``classes``: None to discover them, a list, or a text file with a name per line.
      ``classes.txt`` in ``data_root`` is taken where it exists.
    - ``pretrained``: a checkpoint whose backbone training starts from, or None.
    - ``reduce_zero_label`` (image_masks): mask value 0 is unlabeled, 1 the first class.

    Settings of the datasets that do not say where data lie (``pipeline``, ``filter_cfg``,
    ``indices``, ...) stay, and so do wrappers such as ``RepeatDataset`` around them.

    Returns lines to be shown. A ValueError says which data cannot be used, and the way out.
    """
    kind = cfg.get('custom_data')
    if kind is None:
        return []
    kinds = dict(
        class_folders=_resolve_class_folders, coco=_resolve_coco, image_masks=_resolve_image_masks
    )
    if kind not in kinds:
        raise ValueError(f'custom_data must be one of {", ".join(kinds)}, got {kind!r}')
    root = Path(cfg.data_root).expanduser()
    if not root.is_dir():
        raise ValueError(
            f'data_root {cfg.data_root} is no folder; name yours with --cfg-options '
            'data_root=FOLDER (docs/custom_data.md shows how it is laid out).'
        )
    lines = kinds[kind](cfg, root, _given_classes(cfg, root))
    if cfg.get('pretrained'):
        cfg.model.backbone.init_cfg = dict(
            type='Pretrained', checkpoint=cfg.pretrained, prefix='backbone.'
        )
    elif not cfg.get('load_from'):
        lines.append(
            'custom data: no starting weights. With few images start from a checkpoint: '
            '--cfg-options pretrained=FILE (its backbone) or load_from=FILE (all that fits).'
        )
    return lines


def set_classes(cfg: Config, classes: Sequence[str]) -> None:
    """Give a config its classes without looking at data, in place, as for inference."""
    cfg.classes = list(classes)
    for child in _dicts([cfg.get('model'), cfg.get('data_preprocessor')]):
        if 'num_classes' in child:
            child['num_classes'] = len(classes)


def _dicts(node) -> Iterator[dict]:
    """All dicts of a nested config."""
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _dicts(child)
    elif isinstance(node, dict):
        yield node
        yield from _dicts(list(node.values()))


def _given_classes(cfg: Config, root: Path) -> list[str] | None:
    """The names given by the config or a file, or None."""
    given, where = cfg.get('classes'), 'classes'
    if given is None and (root / 'classes.txt').is_file():
        given = str(root / 'classes.txt')
    if given is None:
        return None
    if isinstance(given, str):
        where = given
        file = next((x for x in (Path(given).expanduser(), root / given) if x.is_file()), None)
        if file is None:
            raise ValueError(
                f'classes={given}: no such file here or in {root}; name a text file with a class '
                'per line, or list names: classes=[cat,dog]'
            )
        try:
            given = file.read_text(encoding='utf-8-sig').splitlines()
        except (OSError, UnicodeError) as error:
            raise ValueError(f'{file} is no text file of class names: {error}') from None
    if not isinstance(given, (list, tuple)):
        raise ValueError(f'classes={given}: list names, classes=[cat,dog], or name a text file')
    names = [name for name in (str(name).strip() for name in given) if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ValueError(f'{where}: ' + (f'{twice[0]} is listed twice' if twice else 'no names'))
    return names


def _relative(path: Path, root: Path) -> str:
    text = path.relative_to(root).as_posix()
    return '' if text == '.' else text


def inner_datasets(dataset: dict) -> list[dict]:
    """The datasets inside of wrappers, or the dataset itself."""
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner is None:
        return [dataset]
    children = inner if isinstance(inner, (list, tuple)) else [inner]
    return [found for child in children for found in inner_datasets(child)]


def _has_folds(loader) -> bool:
    return any(str(d.get('type', '')).endswith('KFoldDataset') for d in _dicts(loader))


def _set_datasets(cfg: Config, root: Path, train: dict, val: dict | None) -> None:
    """Write what was found into the datasets; ``val`` None takes validation away."""
    for name in LOADERS:
        found = train if name.startswith('train') else val
        if found is None:
            cfg[name] = None
        elif cfg.get(name) is not None:
            dataset = cfg[name].dataset
            if _has_folds(cfg[name]):
                found = dict(train, **({'part': 'all'} if 'part' in train else {}))
            for inner in inner_datasets(dataset):
                for key in _FOUND:
                    inner.pop(key, None)
                inner.update(found, data_root=str(root))
    if val is None:
        for name in ('val_cfg', 'val_evaluator', 'test_cfg', 'test_evaluator'):
            cfg[name] = None


def _summary(root: Path, classes: list[str], found: str) -> list[str]:
    shown = ', '.join(classes[:8]) + (', ...' if len(classes) > 8 else '')
    return [f'custom data: {root}: {found}; {len(classes)} classes ({shown})']


def _check_held_out(root: Path, count: int, what: str) -> None:
    if not count:
        raise ValueError(
            f'{root} has no validation split, and {what} to hold out for one; add images, or a '
            'folder val beside train (docs/custom_data.md).'
        )


def _match_folders(classes: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """Classes and their folders; lines such as 'n01440764 tench' name both."""
    pairs = [name.split(maxsplit=1) for name in classes]
    if not set(classes) <= set(names) and all(pair[0] in names for pair in pairs):
        folders, titles = [pair[0] for pair in pairs], [pair[-1] for pair in pairs]
        return (titles if len(set(titles)) == len(titles) else folders), folders
    return classes, classes


def _resolve_class_folders(cfg, root, classes):
    splits = {split: split_folder(root, split) for split in SPLITS}
    # Without class folders in it, it is no split, but may be a class of that name.
    splits = {split: x for split, x in splits.items() if x and list_class_folders(x)}
    train, val = splits.get('train', root), splits.get('val')
    unused = [] if val is None else other_splits(root, splits)
    names = list_class_folders(train)
    if train == root:
        names = [x for x in names if train / x not in splits.values() and x not in unused]
        check_no_splits(root, names)
    files = {name: list_files(train / name) for name in names}
    images = {n: [f for f in files[n] if f.lower().endswith(IMAGE_SUFFIXES)] for n in names}
    if classes is None:
        classes = [name for name in names if images[name]]
    classes, folders = _match_folders(classes, names)
    absent = [name for name in folders if name not in names]
    if absent:
        raise ValueError(
            f'{train} has no folder for the class {absent[0]!r}; it has '
            f'{", ".join(names[:8]) or "none"}. A class is named like its folder.'
        )
    share = _val_fraction(cfg)
    fraction = share.get('val_fraction', 0.2)
    if len(classes) < 2:
        raise ValueError(
            f'{train} holds {len(classes)} folders with images, and a classifier needs at least '
            'two: FOLDER/train/CLASS/*.jpg, or FOLDER/CLASS/*.jpg'
        )
    found = {train: [name for name in names if images[name]]}
    if val:
        found[val] = [name for name in list_class_folders(val) if list_images(val / name)]
        if not set(found[val]) & set(folders):
            raise ValueError(f'{val} holds no images of the classes {", ".join(folders[:8])}')
    else:
        held = sum(len(hold_out(images[name], 'val', fraction)) for name in folders)
        _check_held_out(root, held, 'each class has one image, too few')
    for split, inside in found.items():
        unknown = [name for name in inside if name not in folders]
        if unknown:
            raise ValueError(
                f'{split} holds folders that are no class: {", ".join(unknown[:5])}. The '
                f'{len(folders)} classes are {", ".join(folders[:5])}...; remove the folders, or '
                'add them to the classes (classes.txt).'
            )
    set_classes(cfg, classes)
    base = dict(type='coc_mm.ClassFolders', metainfo=dict(classes=classes), **share)
    if folders != classes:
        base['folders'] = folders
    parts = ('all', 'all') if val else ('train', 'val')
    sets = [
        dict(base, data_prefix=dict(img_path=_relative(folder, root)), part=part)
        for folder, part in zip((train, val or train), parts, strict=True)
    ]
    _set_datasets(cfg, root, *sets)
    folds = _has_folds(cfg.get('train_dataloader'))
    labels = [
        label
        for label, name in enumerate(folders)
        for _ in hold_out(images[name], 'all' if folds else parts[0], fraction)
    ]
    labels = _trained(cfg, root, labels)
    says = f'{len(labels)} training images in {_relative(train, root) or "its class folders"}, '
    says += f'validation in {_relative(val, root)}' if val else 'a fifth held out for validation'
    if folds:
        says = f'{len(labels)} images, of which KFoldDataset chooses those to train'
    elif share and not val:
        says = says.replace('a fifth', f'{fraction:g} of each class')
    remarks = _say_left_out(train, files, images) + _say_unseen(train, classes, set(labels))
    if unused:
        remarks.append(f'custom data: {root}: not used: {", ".join(unused)}.')
    return _summary(root, classes, says) + remarks


def _val_fraction(cfg: Config) -> dict:
    """The share that is held out, where a dataset of the config sets it."""
    loaders = [cfg[name] for name in LOADERS if cfg.get(name)]
    found = {
        inner['val_fraction']
        for loader in loaders
        for inner in inner_datasets(loader.dataset)
        if 'val_fraction' in inner
    }
    if len(found) > 1:
        raise ValueError(f'val_fraction differs between the datasets ({sorted(found)})')
    return {'val_fraction': found.pop()} if found else {}


def _trained(cfg: Config, root: Path, items: list) -> list:
    """The items that the training datasets use, after their ``indices``."""
    inner = inner_datasets(cfg.train_dataloader.dataset) if cfg.get('train_dataloader') else [{}]
    used = [item for dataset in inner for item in take(items, dataset.get('indices'))]
    if not used:
        raise ValueError(f'{root}: the indices of train_dataloader.dataset leave no image')
    return used


def _say_unseen(folder: Path, classes: list[str], seen: set[int]) -> list[str]:
    unseen = [name for index, name in enumerate(classes) if index not in seen]
    shown = ', '.join(unseen[:8]) + (', ...' if len(unseen) > 8 else '')
    return [f'custom data: {folder}: nothing to train on of {shown}.'] if unseen else []


def _say_left_out(folder: Path, files: dict[str, list], images: dict[str, list]) -> list[str]:
    """Name class folders without images, and count files that are no images by suffix."""
    empty = [name for name in files if not images[name]]
    others = [f for name in files for f in sorted(set(files[name]) - set(images[name]))]
    says = [f'folders without images: {", ".join(empty[:8])}'] if empty else []
    if others:
        says.append(f'files that are not read as images: {count_suffixes(others)}')
    return [f'custom data: {folder}: left out: {"; ".join(says)}.'] if says else []


def _coco_json(root: Path, split: str) -> Path | None:
    """Find the annotation file of a split."""
    there = {
        path.relative_to(root).as_posix().casefold(): path
        for pattern in ('*.json', '*/*.json')
        for path in root.glob(pattern)
    }
    forms = ('annotations/instances_{}.json', 'annotations/{}.json', '{}/_annotations.coco.json')
    places = [form.format(name) for name in SPLITS[split] for form in (*forms, '{}.json')]
    file = next((there[place] for place in places if place in there), None)
    if file is None and split == 'train':
        raise ValueError(
            f'{root} has no COCO annotations for training: annotations/train.json or '
            'annotations/instances_train2017.json is expected, e.g., or one of '
            f'{", ".join(places)}'
        )
    return file


def _coco_images(root: Path, split: str, file: Path, content: dict) -> Path:
    """Find the folder that the file names of an annotation file are relative to."""
    name = content['images'][0]['file_name']
    places = [file.parent, split_folder(root, split), split_folder(root / 'images', split)]
    folders = [x for x in (*places, root / 'images', root) if x and x.is_dir()]
    folder = next((x for x in folders if os.path.isfile(x / name)), None)
    if folder is None:
        tried = ', '.join(_relative(x, root) or '.' for x in folders)
        which = f'{file} names the image {name[:200]}'
        raise ValueError(f'{which}, which is in none of the folders {tried} of {root}')
    missing = missing_images(folder, content)
    if missing:
        raise ValueError(
            f'{file}: {len(missing)} of {len(content["images"])} images are not in {folder}, e.g. '
            f'{missing[0][:200]}; put them there, or take them out of the file.'
        )
    return folder


def _set_ann_file(metric: dict, file: str) -> None:
    """Name the file to a metric that reads one; else drop what is left of ``CocoMetric``."""
    arguments: Any = ['ann_file']
    if metric['type'] not in ('CocoMetric', 'mmdet.CocoMetric'):
        with METRICS.switch_scope_and_registry('mmdet') as registry:
            kind = registry.get(metric['type'])
        arguments = inspect.signature(kind).parameters if kind else []
        for key in {'ann_file', 'format_only', 'backend_args'} & set(metric):
            if key not in arguments:
                metric.pop(key)
        if metric['type'].endswith('VOCMetric') and metric.get('metric') not in ('mAP', 'recall'):
            metric.pop('metric', None)
    if 'ann_file' in arguments:
        metric['ann_file'] = file


def _resolve_coco(cfg, root, classes):
    files = {split: file for split in SPLITS if (file := _coco_json(root, split))}
    with_masks = any(step.get('with_mask') for step in _dicts(cfg.train_dataloader))
    contents, order, sets = {}, {}, {}
    remarks: list[str] = []
    for split, file in files.items():
        used, content, more = read_coco(file, with_masks)
        contents[split], remarks = content, remarks + more
        names = [category['name'] for category in content['categories']]
        absent = [name for name in classes or [] if name not in names]
        if absent and split == 'train':
            raise ValueError(f'{file} has no category {absent[0]!r}; it has {", ".join(names[:8])}')
        # mmdet labels categories in the order of the file, whatever that of the classes.
        order[split] = [name for name in names if classes is None or name in classes]
        images = _relative(_coco_images(root, split, file, content), root)
        ann_file = _relative(file, root) if used == file else str(used)
        sets[split] = dict(type='CocoDataset', ann_file=ann_file, data_prefix=dict(img=images))
    classes = order['train']
    if len(set(classes)) < len(classes):
        raise ValueError(f'{files["train"]} has two categories of one name')
    if order.get('val', classes) != classes:
        raise ValueError(
            f'{files["val"]} lists other categories than {files["train"]}, or in another order; '
            'both need the same list.'
        )
    set_classes(cfg, classes)
    for found in sets.values():
        found['metainfo'] = dict(classes=classes, palette=_palette(len(classes)))
    for inner in inner_datasets(cfg.train_dataloader.dataset):
        inner.setdefault('filter_cfg', dict(filter_empty_gt=True, min_size=32))
    val = dict(sets['val'], test_mode=True) if 'val' in sets else None
    _set_datasets(cfg, root, sets['train'], val)
    trained, more = 0, []
    for dataset in inner_datasets(cfg.train_dataloader.dataset):
        count, more = count_training(files['train'], contents['train'], classes, dataset)
        trained += count
    if val:
        for metric in _dicts([cfg.get('val_evaluator'), cfg.get('test_evaluator')]):
            if 'type' in metric:
                _set_ann_file(metric, str(root / val['ann_file']))
    says = {split: f'{len(content["images"])} images' for split, content in contents.items()}
    if trained < len(contents['train']['images']):
        says['train'] = f'{trained} of {says["train"]}'
    summary = ', '.join(f'{_relative(files[s], root)} ({says[s]})' for s in contents)
    summary += '' if val else ', so no validation'
    return _summary(root, classes, summary) + remarks + more


def _palette(count: int) -> list[tuple]:
    """Colors around the wheel, neighbors far apart."""
    wheel = [colorsys.hsv_to_rgb(i * 0.618 % 1, 0.75, 0.95) for i in range(count)]
    return [tuple(round(255 * x) for x in color) for color in wheel]  # mmdet draws with tuples only


def _image_mask_folders(root):
    """Find the folders of images and masks of both splits; validation may have none."""
    found: dict[str, tuple] = {}
    whole: dict[str, tuple] = {}
    for masks in ('annotations', 'masks', 'labels'):
        for split in SPLITS:
            parent = split_folder(root, split) or root / split
            images = split_folder(root / 'images', split), split_folder(root / masks, split)
            for pair in (images, (parent / 'images', parent / masks)):
                if all(folder and folder.is_dir() for folder in pair):
                    found.setdefault(split, pair)
        if (root / 'images').is_dir() and (root / masks).is_dir():
            whole.setdefault('train', (root / 'images', root / masks))
    found = found if 'train' in found else whole
    if not found:
        raise ValueError(
            f'{root} has no images with masks: images/train and annotations/train are expected '
            '(and val), or images and annotations; annotations may be called masks or labels.'
        )
    return found


def _resolve_image_masks(cfg, root, classes):
    reduce_zero = bool(cfg.get('reduce_zero_label', False))
    folders = _image_mask_folders(root)
    names = {split: [mask for _, mask in pair_masks(*pair)] for split, pair in folders.items()}
    val = 'val' in folders
    share = _val_fraction(cfg)
    fraction = share.get('val_fraction', 0.2)
    if not val:
        held = len(hold_out(names['train'], 'val', fraction))
        _check_held_out(root, held, 'there is one image with a mask, too few')
    found = {split: mask_values(folders[split][1], names[split]) for split in folders}
    values = {split: sorted(set().union(*each.values())) for split, each in found.items()}
    if values['train'] in ([], [0]):
        raise ValueError(
            f'the masks in {folders["train"][1]} hold nothing but {values["train"] or "255"} (and '
            '255, which means unlabeled): write the index of its class into every pixel, e.g. 1 '
            'instead of 255.'
        )
    highest = max(each[-1] for each in values.values() if each)
    if classes is None:
        classes = [str(value) for value in range(int(reduce_zero), highest + 1)]
    for split, each in found.items():
        beyond = {n: v[-1] for n, v in each.items() if v and v[-1] - reduce_zero >= len(classes)}
        if beyond:
            name, value = next(iter(beyond.items()))
            raise ValueError(
                f'{len(beyond)} masks in {folders[split][1]}, e.g. {name}, hold the value {value}, '
                f'but there are {len(classes)} classes, so {len(classes) - 1 + reduce_zero} is the '
                'highest index. List all classes in classes.txt; if 0 means unlabeled and 1 is '
                'the first class: --cfg-options reduce_zero_label=True'
            )
    unseen = sorted(set(values.get('val', ())) - set(values['train']))
    remarks = []
    if unseen:
        shown = ', '.join(map(str, unseen[:8])) + (', ...' if len(unseen) > 8 else '')
        remarks.append(
            f'custom data: {folders["val"][1]} holds {shown}, which no mask for training has: such '
            'classes are not learned and lower the mean.'
        )
    set_classes(cfg, classes)
    base = dict(
        type='coc_mm.ImageMaskFolders',
        metainfo=dict(classes=classes, palette=_palette(len(classes))),
        reduce_zero_label=reduce_zero,
        **share,
    )
    sets = []
    for split in SPLITS:
        images, masks = (_relative(x, root) for x in folders.get(split, folders['train']))
        prefix = dict(img_path=images, seg_map_path=masks)
        sets.append(dict(base, data_prefix=prefix, part='all' if val else split))
    _set_datasets(cfg, root, *sets)
    used = names['train'] if val else hold_out(names['train'], 'train', fraction)
    used = _trained(cfg, root, used)
    seen = {value - reduce_zero for name in used for value in found['train'][name]}
    remarks += _say_unseen(folders['train'][1], classes, seen)
    held_out = f'{fraction:g}' if share else 'a fifth'
    other = f'{len(names["val"])} for validation' if val else f'{held_out} of them held out'
    part = f'{len(used)} of ' if len(used) < len(names['train']) else ''
    says = f'{part}{len(names["train"])} images with masks for training, {other}'
    return _summary(root, classes, says) + remarks
