"""Your own data: complete a ``*_custom.py`` config from what lies in ``data_root``.

mmengine applies ``--cfg-options`` when the config file has long been evaluated, so a file cannot
compute from ``data_root``. :func:`resolve_custom` does it afterwards: it finds splits and classes
and writes them into datasets, heads and metrics.
"""

import csv
import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import METRICS

from coc_mm.datasets.coco import count_training, read_splits
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
    say_copies,
    say_unseen,
    set_arch,
    set_classes,
    set_datasets,
    some,
    summary,
    trained,
)
from coc_mm.datasets.custom_masks import resolve_image_masks
from coc_mm.datasets.folder_datasets import hold_out, write_list
from coc_mm.datasets.labels.coco_files import hold_out_coco, write_coco
from coc_mm.datasets.labels.folder import Folder, choose_splits, split_of
from coc_mm.utils.images import IMAGE_SUFFIXES, count_suffixes, list_files


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


def _class_folders(folder: Path) -> list[str]:
    """Names of subfolders, sorted, but for those that start with ``.`` or ``_``."""
    return sorted(x.name for x in folder.iterdir() if x.is_dir() and x.name[0] not in '._')


def _find_classes(root: Path) -> tuple[dict[str, Path], list[str], list[str]]:
    """Folders of 'train' and 'val', the names of the classes, and of splits that are not used."""
    named = {name: split for name in _class_folders(root) if (split := split_of(name, True))}
    # Without class folders in it, it is no split, but may be a class of that name.
    splits: dict[str, list[str]] = {}
    for name, split in named.items():
        if _class_folders(root / name):
            splits.setdefault(split, []).append(name)
    found = {'train': root / splits['train'][0] if 'train' in splits else root}
    ranked = [*splits.get('val', []), *splits.get('test', [])]
    if ranked:
        found['val'] = root / ranked[0]
    used = [path.name for path in found.values()]
    unused = [x for each in splits.values() for x in each if ranked and x not in used]
    names = _class_folders(found['train'])
    if found['train'] == root:
        names = [x for x in names if x not in used + unused]
        left = [x for x in names if x in named]
        if len(left) > 1:  # one alone may be a class of that name
            names = [x for x in names if x not in left]
        if len(left) > 1 and not names:
            raise ValueError(
                f'{root} holds no class folders, but splits without classes: {", ".join(left)}. '
                f'A classifier needs {left[0]}/CLASS/*.jpg; boxes and masks are trained with '
                'the configs of detection and segmentation (docs/custom_data.md).'
            )
        inside = [set(_class_folders(root / name)) for name in names]
        same = set.intersection(*inside) if len(inside) > 1 else set()
        if len(same) > 1:
            raise ValueError(
                f'{root}: {", ".join(names[:5])} all hold the folders '
                f'{", ".join(sorted(same)[:5])}, so they look like splits, not like classes: call '
                'them train and val.'
            )
    return found, names, unused


def _class_tables(folder: Folder) -> dict[str, dict[str, list[str]]] | None:
    """Images of each class by split, of Roboflow's ``_classes.csv``; None if there is none."""
    splits: dict[str, dict[str, list[str]]] = {}
    for file in folder.ending('_classes.csv'):
        rows = [[x.strip() for x in row] for row in csv.reader(folder.text(file).splitlines())]
        if not rows or len(rows[0]) < 3 or rows[0][0].casefold() != 'filename':
            continue
        found = splits.setdefault(split_of(file) or 'train', {name: [] for name in rows[0][1:]})
        for number, row in enumerate(rows[1:], 2):
            if row[1:].count('1') != 1 or len(row) != len(rows[0]):
                raise ValueError(
                    f'{folder.root / file}, line {number}: {row[0]} has {row[1:].count("1")} '
                    'classes. A classifier learns one of each image: export it as folders of '
                    'classes; for several labels see MultiLabelClsHead of mmpretrain.'
                )
            if image := folder.image(row[0], file):
                found.setdefault(rows[0][1:][row[1:].index('1')], []).append(image)
    return {s: splits[x] for s, x in choose_splits(splits).items()} if splits else None


def _listed_folders(root: Path) -> tuple[dict, dict[str, Path], list[str]]:
    """Images of each class by split; the folders of the splits; and what is left out."""
    splits, names, unused = _find_classes(root)
    images: dict[str, dict] = {}
    remarks: list[str] = []
    for split, folder in splits.items():
        classes = names if split == 'train' else _class_folders(folder)
        files = {name: list_files(folder / name) for name in classes}
        images[split] = {
            name: [
                relative(folder / name / x, root)
                for x in found
                if x.lower().endswith(IMAGE_SUFFIXES)
            ]
            for name, found in files.items()
        }
        remarks += _say_left_out(folder, files, images[split]) if split == 'train' else []
    if unused:
        remarks.append(f'custom data: {root}: not used: {", ".join(unused)}.')
    return images, splits, remarks


def _resolve_class_folders(cfg, root, classes):
    images = _class_tables(Folder(root))
    images, splits, remarks = _listed_folders(root) if images is None else (images, {}, [])
    where = {split: splits.get(split, root) for split in images}
    if cfg.get('fold'):
        images.pop('val', None)
    names = list(images['train'])
    known = [name for name in names if images['train'][name]]
    classes, folders = _match_folders(classes or known, names)
    absent = [name for name in folders if name not in names]
    if absent:
        raise ValueError(
            f'{where["train"]} has no folder for the class {absent[0]!r}; it has '
            f'{some(names) or "none"}. A class is named like its folder.'
        )
    other = r'(jpeg)?images?|imgs?|labels?|masks?|annot\w*|segmentation(class|object)\w*'
    if len(classes) < 2 or all(re.fullmatch(other, x, re.IGNORECASE) for x in classes):
        raise ValueError(
            f'{where["train"]} holds the folders {some(classes) or "none"} with images, and a '
            'classifier needs at least two classes: FOLDER/train/CLASS/*.jpg, or '
            'FOLDER/CLASS/*.jpg. Boxes and masks are trained with the configs of detection and '
            'segmentation (docs/custom_data.md).'
        )
    for split, found in images.items():
        used = [name for name in found if found[name]]
        unknown = [name for name in used if name not in folders]
        if used == unknown:
            raise ValueError(f'{where[split]} holds no images of the classes {some(folders)}')
        if unknown:
            raise ValueError(
                f'{where[split]} holds folders that are no class: {", ".join(unknown[:5])}. The '
                f'{len(folders)} classes are {", ".join(folders[:5])}...; remove the folders, or '
                'add them to the classes (classes.txt).'
            )

    def rows(split: str, choose: Any = list) -> list[tuple[str, int]]:
        listed = enumerate(images[split].get(name, []) for name in folders)
        return [(image, label) for label, found in listed for image in choose(found)]

    how, own, whole = hold_out_settings(cfg), 'val' in images, rows('train')
    held = partial(hold_out, root=root, **how)
    train = whole if own else rows('train', partial(held, part='train'))
    val = rows('val') if own else rows('train', partial(held, part='val'))
    check_held_out(root, len(val), 'images of every class')
    set_classes(cfg, classes)
    base = dict(type='CustomDataset', metainfo=dict(classes=classes), data_prefix='')
    lists = (dict(base, ann_file=write_list(part, ' ')) for part in (train, val, whole))
    set_datasets(cfg, root, *lists)
    folds = has_folds(cfg.get('train_dataloader'))
    labels = trained(cfg, root, [label for _, label in (whole if folds else train)])
    part = f'{how["fraction"]:g} of each class' if 'fraction' in how else how.get('fold', 'a fifth')
    says = f'{len(labels)} training images in {below(where["train"], root) or "its class folders"}'
    says += ', ' + (
        f'validation in {relative(where["val"], root)}'
        if own
        else f'{part} held out for validation'
    )
    if folds:
        says = f'{len(labels)} images, of which KFoldDataset chooses those to train'
    remarks += say_unseen(where['train'], classes, set(labels))
    if own:
        remarks += say_copies(root, [image for image, _ in train], [image for image, _ in val])
    return summary(root, classes, says) + remarks


def _say_left_out(folder: Path, files: dict[str, list], images: dict[str, list]) -> list[str]:
    """Name class folders without images, and count files that are no images by suffix."""
    empty = [name for name in files if not images[name]]
    others = [x for each in files.values() for x in each if not x.lower().endswith(IMAGE_SUFFIXES)]
    says = [f'folders without images: {some(empty)}'] if empty else []
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
    with_masks = any(step.get('with_mask') for step in dicts(cfg.train_dataloader))
    read, name, remarks = read_splits(cfg, Folder(root), with_masks)
    files = {split: found[0] for split, found in read.items()}
    if 'val' not in read:
        file, _, content, images = read['train']
        parts = hold_out_coco(content, images, **hold_out_settings(cfg))
        check_held_out(root, len(parts['val']['images']), 'images')
        for split, part in parts.items():
            read[split] = file, write_coco(part, f'{file.stem}-{split}'), part, images
    names = {s: [c['name'] for c in x[2]['categories']] for s, x in read.items()}
    absent = [name for name in classes or [] if name not in names['train']]
    if absent:
        raise ValueError(
            f'{files["train"]} has no category {absent[0]!r}; it has {some(names["train"])}'
        )
    # mmdet labels categories in the order of the file, whatever that of the classes.
    order = {s: [x for x in each if classes is None or x in classes] for s, each in names.items()}
    classes = order['train']
    if order['val'] != classes:
        raise ValueError(
            f'{files["val"]} lists other categories than {files["train"]}, or in another order; '
            'both need the same list.'
        )
    set_classes(cfg, classes)
    metainfo = dict(classes=classes, palette=palette(len(classes)))
    sets = {
        split: dict(
            type='CocoDataset',
            metainfo=metainfo,
            ann_file=below(used, root),
            data_prefix=dict(img=below(images, root)),
        )
        for split, (_, used, _, images) in read.items()
    }
    for inner in inner_datasets(cfg.train_dataloader.dataset):
        inner.setdefault('filter_cfg', dict(filter_empty_gt=True, min_size=32))
    set_datasets(cfg, root, sets['train'], dict(sets['val'], test_mode=True))
    trained = 0
    more: list[str] = []
    own = files['train'] if name == 'COCO' else root
    for dataset in inner_datasets(cfg.train_dataloader.dataset):
        count, more = count_training(own, read['train'][2], classes, dataset)
        trained += count
    for metric in dicts([cfg.get('val_evaluator'), cfg.get('test_evaluator')]):
        if 'type' in metric:
            _set_ann_file(metric, str(root / sets['val']['ann_file']))
    says, paths = [], {}
    for split, (file, _, content, images) in read.items():
        count, entries = len(content['images']), len(content['annotations'])
        of = f'{trained} of {count}' if split == 'train' and trained < count else count
        inside = file.is_relative_to(root)
        where = (relative(file, root) if inside else split) if split in files else 'held out'
        says.append(f'{where} ({of} images, {entries} annotations)')
        paths[split] = [str(images / image['file_name']) for image in content['images']]
    if 'val' in files:
        more += say_copies(root, paths['train'], paths['val'])
    return summary(root, classes, f'{name}: {", ".join(says)}') + remarks + more
