"""Your own data: complete a ``*_custom.py`` config from what lies in ``data_root``.

mmengine applies ``--cfg-options`` when the config file has long been evaluated, so a file cannot
compute from ``data_root``. :func:`resolve_custom` does it afterwards: it finds splits and classes
and writes them into datasets, heads and metrics.
"""

import inspect
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import METRICS

from coc_mm.datasets.coco import coco_folders, coco_images, count_training, read_coco
from coc_mm.datasets.custom_config import (
    below,
    check_held_out,
    dicts,
    given_classes,
    has_folds,
    hold_out_settings,
    inner_datasets,
    palette,
    relative,
    say_unseen,
    set_arch,
    set_classes,
    set_datasets,
    summary,
    trained,
)
from coc_mm.datasets.custom_masks import resolve_image_masks
from coc_mm.datasets.folder_datasets import (
    SPLITS,
    check_no_splits,
    hold_out,
    list_class_folders,
    other_splits,
    split_folder,
)
from coc_mm.datasets.labels.coco_files import find_coco_files, hold_out_coco, write_coco
from coc_mm.utils.images import IMAGE_SUFFIXES, count_suffixes, list_files, list_images

__all__ = ['inner_datasets', 'resolve_custom', 'set_classes']


def resolve_custom(cfg: Config) -> list[str]:
    """Complete a config for own data, in place; any other config is left alone.

    A second call changes nothing. The entries of the config that count, all at the top level:

    - ``custom_data``: the kind of data, 'class_folders', 'coco' or 'image_masks'.
    - ``data_root``: the folder.
    - ``classes``: None to discover them, a list, or a text file with a name per line.
      ``classes.txt`` in ``data_root`` is taken where it exists.
    - ``format``, ``ann_file``, ``img_dir``: what the folder's labels are, where it is not found.
    - ``fold`` ('2/5') and ``group_by`` (a column, or text that ends a prefix): what is held out.
    - ``arch``: another backbone, whose widths neck and head follow.
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
        class_folders=_resolve_class_folders, coco=_resolve_coco, image_masks=resolve_image_masks
    )
    if kind not in kinds:
        raise ValueError(f'custom_data must be one of {", ".join(kinds)}, got {kind!r}')
    root = Path(cfg.data_root).expanduser()
    if not root.is_dir():
        raise ValueError(
            f'data_root {cfg.data_root} is no folder; name yours with --cfg-options '
            'data_root=FOLDER (docs/custom_data.md shows how it is laid out).'
        )
    set_arch(cfg)
    lines = kinds[kind](cfg, root, given_classes(cfg, root))
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
        known = {word for words in SPLITS.values() for word in words}
        named = [name for name in names if name.casefold() in known]
        if len(named) > 1:  # one alone may be a class of that name
            names = [name for name in names if name not in named]
        if len(named) > 1 and not names:
            raise ValueError(
                f'{root} holds no class folders, but splits without classes: {", ".join(named)}. '
                f'A classifier needs {named[0]}/CLASS/*.jpg; boxes and masks are trained with '
                'the configs of detection and segmentation (docs/custom_data.md).'
            )
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
    share, how = hold_out_settings(cfg)
    val = None if cfg.get('fold') else val
    if len(classes) < 2:
        raise ValueError(
            f'{train} holds {len(classes)} folders with images, and a classifier needs at least '
            'two: FOLDER/train/CLASS/*.jpg, or FOLDER/CLASS/*.jpg'
        )
    found = {train: [name for name in names if images[name]]}
    val = None if cfg.get('fold') else val
    if val:
        found[val] = [name for name in list_class_folders(val) if list_images(val / name)]
        if not set(found[val]) & set(folders):
            raise ValueError(f'{val} holds no images of the classes {", ".join(folders[:8])}')
    else:
        held = sum(len(hold_out(images[name], 'val', root=train / name, **how)) for name in folders)
        check_held_out(root, held, 'images of every class')
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
        dict(base, data_prefix=dict(img_path=relative(folder, root)), part=part)
        for folder, part in zip((train, val or train), parts, strict=True)
    ]
    set_datasets(cfg, root, *sets)
    folds = has_folds(cfg.get('train_dataloader'))
    labels = [
        label
        for label, name in enumerate(folders)
        for _ in hold_out(images[name], 'all' if folds else parts[0], root=train / name, **how)
    ]
    labels = trained(cfg, root, labels)
    says = f'{len(labels)} training images in {relative(train, root) or "its class folders"}, '
    says += f'validation in {relative(val, root)}' if val else 'a fifth held out for validation'
    if folds:
        says = f'{len(labels)} images, of which KFoldDataset chooses those to train'
    elif (share.keys() - {'group_by'}) and not val:
        part = how.get('fold') or f'{how.get("fraction", 0.2):g} of each class'
        says = says.replace('a fifth', part)
    remarks = _say_left_out(train, files, images) + say_unseen(train, classes, set(labels))
    if unused:
        remarks.append(f'custom data: {root}: not used: {", ".join(unused)}.')
    return summary(root, classes, says) + remarks


def _say_left_out(folder: Path, files: dict[str, list], images: dict[str, list]) -> list[str]:
    """Name class folders without images, and count files that are no images by suffix."""
    empty = [name for name in files if not images[name]]
    others = [f for name in files for f in sorted(set(files[name]) - set(images[name]))]
    says = [f'folders without images: {", ".join(empty[:8])}'] if empty else []
    if others:
        says.append(f'files that are not read as images: {count_suffixes(others)}')
    return [f'custom data: {folder}: left out: {"; ".join(says)}.'] if says else []


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
    files, name, remarks = find_coco_files(root, cfg.get('format'), cfg.get('ann_file'))
    if cfg.get('fold'):
        files.pop('val', None)
    with_masks = any(step.get('with_mask') for step in dicts(cfg.train_dataloader))
    read, order, sets = {}, {}, {}
    for split, file in files.items():
        folders = coco_folders(cfg, root, split, file)
        used, content, more = read_coco(file, with_masks, folders)
        remarks += more
        read[split] = used, content, coco_images(root, folders, file, content)
    if 'val' not in files:
        _, content, images = read['train']
        parts = hold_out_coco(content, images, **hold_out_settings(cfg)[1])
        check_held_out(root, len(parts['val']['images']), 'images')
        stem = files['train'].stem
        read = {s: (write_coco(part, f'{stem}-{s}'), part, images) for s, part in parts.items()}
    for split, (used, content, images) in read.items():
        names = [category['name'] for category in content['categories']]
        absent = [name for name in classes or [] if name not in names]
        if absent and split == 'train':
            raise ValueError(
                f'{files[split]} has no category {absent[0]!r}; it has {", ".join(names[:8])}'
            )
        # mmdet labels categories in the order of the file, whatever that of the classes.
        order[split] = [name for name in names if classes is None or name in classes]
        sets[split] = dict(
            type='CocoDataset',
            ann_file=below(used, root),
            data_prefix=dict(img=below(images, root)),
        )
    classes = order['train']
    if order.get('val', classes) != classes:
        raise ValueError(
            f'{files["val"]} lists other categories than {files["train"]}, or in another order; '
            'both need the same list.'
        )
    set_classes(cfg, classes)
    for found in sets.values():
        found['metainfo'] = dict(classes=classes, palette=palette(len(classes)))
    for inner in inner_datasets(cfg.train_dataloader.dataset):
        inner.setdefault('filter_cfg', dict(filter_empty_gt=True, min_size=32))
    val = dict(sets['val'], test_mode=True)
    set_datasets(cfg, root, sets['train'], val)
    trained, more = 0, []
    content = read['train'][1]
    for dataset in inner_datasets(cfg.train_dataloader.dataset):
        count, more = count_training(files['train'], content, classes, dataset)
        trained += count
    for metric in dicts([cfg.get('val_evaluator'), cfg.get('test_evaluator')]):
        if 'type' in metric:
            _set_ann_file(metric, str(root / val['ann_file']))
    says = []
    for split, (_, content, _) in read.items():
        count, entries = len(content['images']), len(content['annotations'])
        of = f'{trained} of {count}' if split == 'train' and trained < count else count
        where = split if split in files else 'held out'
        if split in files and files[split].is_relative_to(root):
            where = relative(files[split], root)
        says.append(f'{where} ({of} images, {entries} annotations)')
    return summary(root, classes, f'{name}: {", ".join(says)}') + remarks + more
