"""Your own data: see what lies in ``data_root`` and complete a ``*_custom.py`` config.

mmengine applies ``--cfg-options`` when the config file has long been evaluated, so a
file cannot compute from ``data_root``. :func:`resolve_custom` does it afterwards: it
finds splits and classes and writes them into datasets, heads and metrics. Nothing
stays to be found out, so the config that a run leaves in its work dir, and the
checkpoint's list of classes, are all that testing and inference need.
"""

import colorsys
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from coc_mm.datasets.coco_checks import check_coco, check_masks, missing_images
from coc_mm.datasets.folder_datasets import list_images, pair_masks

__all__ = ['resolve_custom', 'set_classes']

SPLITS = {
    'train': ('train', 'training', 'train2017'),
    'val': ('val', 'valid', 'validation', 'val2017', 'test'),
}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Masks looked into to see whether given classes fit.
MASKS_CHECKED = 64
UNLABELLED = 255


def resolve_custom(cfg: Config) -> list[str]:
    """Complete a config for own data, in place. Any other config is left alone.

    Called by the tools after ``--cfg-options`` are merged; a second call changes
    nothing. The entries of the config that count, all at the top level:

    - ``custom_data``: 'class_folders', 'coco' or 'image_masks', the kind of data; a
      config without it is not for own data.
    - ``data_root``: the folder.
    - ``classes``: None to discover them, a list, or a text file with a name per line.
      ``classes.txt`` in ``data_root`` is taken where it exists.
    - ``pretrained``: a checkpoint whose backbone training starts from, or None.
    - ``reduce_zero_label`` (image_masks): mask value 0 is unlabelled, 1 the first class.

    Args:
        cfg (Config): The config.

    Returns:
        list[str]: What was found, a line each, to be shown.

    Raises:
        ValueError: The data cannot be used: what, where, and the way out.
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
    """Give a config its classes without looking at data, in place.

    For inference with a checkpoint that lists them, in ``meta['dataset_meta']``.

    Args:
        cfg (Config): The config.
        classes (Sequence[str]): Names in the order of their labels.
    """
    cfg.classes = list(classes)
    for node in (cfg.get('model'), cfg.get('data_preprocessor')):
        _set_everywhere(node, 'num_classes', len(classes))


def _set_everywhere(node, key, value):
    """Set a key in every dict of a nested config that has it."""
    if isinstance(node, (list, tuple)):
        for child in node:
            _set_everywhere(child, key, value)
    elif isinstance(node, dict):
        if key in node:
            node[key] = value
        for child in node.values():
            _set_everywhere(child, key, value)


def _given_classes(cfg, root):
    """Return the names given by the config or a file, or None."""
    given = cfg.get('classes')
    if given is None and (root / 'classes.txt').is_file():
        given = str(root / 'classes.txt')
    if given is None:
        return None
    where = 'classes'
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
    names = [str(name).strip() for name in given]
    names = [name for name in names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ValueError(f'{where}: ' + (f'{twice[0]} is listed twice' if twice else 'no names'))
    return names


def _split_dir(parent, split):
    """Return the folder of a split below another, or None."""
    return next((parent / n for n in SPLITS[split] if (parent / n).is_dir()), None)


def _relative(path, root):
    text = path.relative_to(root).as_posix()
    return '' if text == '.' else text


def _set_datasets(cfg, root, train, val):
    """Put datasets into the loaders, each with the pipeline that is there.

    ``train`` and ``val`` are dicts of arguments; val None takes validation away.
    """
    for name in LOADERS:
        settings = train if name.startswith('train') else val
        if settings is None:
            cfg[name] = None
        elif cfg.get(name) is not None:
            pipeline = cfg[name].dataset.pipeline
            cfg[name].dataset = dict(data_root=str(root), **settings, pipeline=pipeline)
    if val is None:
        for name in ('val_cfg', 'val_evaluator', 'test_cfg', 'test_evaluator'):
            cfg[name] = None


def _summary(root, classes, found):
    shown = ', '.join(classes[:8]) + (', ...' if len(classes) > 8 else '')
    return [f'custom data: {root}: {found}; {len(classes)} classes ({shown})']


def _class_folder_names(folder):
    return sorted(x.name for x in folder.iterdir() if x.is_dir() and x.name[0] not in '._')


def _resolve_class_folders(cfg, root, classes):
    train, val = _split_dir(root, 'train'), _split_dir(root, 'val')
    if train is None or not _class_folder_names(train):
        train, val = root, None  # no splits: the root holds the class folders
    names = _class_folder_names(train)
    if classes is None:
        classes = [name for name in names if list_images(train / name)]
    absent = [name for name in classes if name not in names]
    if absent:
        raise ValueError(
            f'{train} has no folder for the class {absent[0]!r}; it has '
            f'{", ".join(names[:8]) or "none"}. A class is named like its folder.'
        )
    if len(classes) < 2:
        raise ValueError(
            f'{train} holds {len(classes)} folders with images, and a classifier needs at least '
            'two: FOLDER/train/CLASS/*.jpg, or FOLDER/CLASS/*.jpg'
        )
    set_classes(cfg, classes)
    base = dict(type='coc_mm.ClassFolders', metainfo=dict(classes=classes))
    parts = ('all', 'all') if val else ('train', 'val')
    _set_datasets(
        cfg,
        root,
        dict(base, data_prefix=dict(img_path=_relative(train, root)), part=parts[0]),
        dict(base, data_prefix=dict(img_path=_relative(val or train, root)), part=parts[1]),
    )
    found = f'training images in {_relative(train, root) or "its class folders"}, '
    found += f'validation in {_relative(val, root)}' if val else 'a fifth held out for validation'
    return _summary(root, classes, found)


def _coco_json(root, split):
    """Find the annotation file of a split."""
    places = [
        place
        for name in SPLITS[split]
        for place in (
            f'annotations/instances_{name}.json',
            f'annotations/{name}.json',
            f'{name}/_annotations.coco.json',
            f'{name}.json',
        )
    ]
    file = next((root / place for place in places if (root / place).is_file()), None)
    if file is None and split == 'train':
        raise ValueError(
            f'{root} has no COCO annotations for training: annotations/train.json or '
            'annotations/instances_train2017.json is expected, e.g., or one of '
            f'{", ".join(places)}'
        )
    return file


def _read_coco(file):
    """Return what a file holds and remarks on it."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is not a COCO annotation file: {str(error)[:200]}') from None
    return content, check_coco(file, content)


def _coco_images(root, split, file, content):
    """Find the folder that the file names of an annotation file are relative to."""
    name = content['images'][0]['file_name']
    folders = [file.parent, *(root / n for n in SPLITS[split])]
    folders += [root / 'images' / n for n in SPLITS[split]] + [root / 'images', root]
    folder = next((x for x in folders if os.path.isfile(x / name)), None)
    if folder is None:
        tried = ', '.join(_relative(x, root) or '.' for x in folders if x.is_dir())
        raise ValueError(
            f'{file} names the image {name[:200]}, which is in none of the folders {tried} of '
            f'{root}'
        )
    missing = missing_images(folder, content)
    if missing:
        raise ValueError(
            f'{file}: {len(missing)} of {len(content["images"])} images are not in {folder}, e.g. '
            f'{missing[0][:200]}; put them there, or take them out of the file.'
        )
    return folder


def _resolve_coco(cfg, root, classes):
    files = {split: _coco_json(root, split) for split in SPLITS}
    contents, remarks = {}, []
    for split in [split for split in SPLITS if files[split]]:
        contents[split], more = _read_coco(files[split])
        remarks += more
    known = {
        split: [category['name'] for category in content['categories']]
        for split, content in contents.items()
    }
    absent = [name for name in classes or [] if name not in known['train']]
    if absent:
        raise ValueError(
            f'{files["train"]} has no category {absent[0]!r}; it has '
            f'{", ".join(known["train"][:8])}'
        )
    # mmdet labels categories in the order of the file, whatever that of the classes.
    order = {
        split: [name for name in names if classes is None or name in classes]
        for split, names in known.items()
    }
    classes = order['train']
    if len(set(classes)) < len(classes):
        raise ValueError(f'{files["train"]} has two categories of one name')
    if order.get('val', classes) != classes:
        raise ValueError(
            f'{files["val"]} lists other categories than {files["train"]}, or in another order; '
            'both need the same list.'
        )
    if _wants_masks(cfg):
        for split, content in contents.items():
            check_masks(files[split], content)
    set_classes(cfg, classes)
    sets = {}
    for split, content in contents.items():
        images = _relative(_coco_images(root, split, files[split], content), root)
        sets[split] = dict(
            type='CocoDataset',
            ann_file=_relative(files[split], root),
            data_prefix=dict(img=images),
            metainfo=dict(classes=classes, palette=_palette(len(classes))),
        )
    train = dict(sets['train'], filter_cfg=dict(filter_empty_gt=True, min_size=32))
    val = dict(sets['val'], test_mode=True) if 'val' in sets else None
    _set_datasets(cfg, root, train, val)
    if val:
        for name in ('val_evaluator', 'test_evaluator'):
            if cfg.get(name) is not None:
                cfg[name].ann_file = str(files['val'])
    found = ', '.join(
        f'{_relative(files[s], root)} ({len(c["images"])} images)' for s, c in contents.items()
    )
    return _summary(root, classes, found + ('' if val else ', so no validation')) + remarks


def _wants_masks(cfg):
    steps = cfg.train_dataloader.dataset.pipeline
    return any(step.get('with_mask') for step in steps)


def _palette(count):
    """Colors around the wheel, neighbours far apart."""
    wheel = [colorsys.hsv_to_rgb(i * 0.618 % 1, 0.75, 0.95) for i in range(count)]
    return [tuple(round(255 * x) for x in color) for color in wheel]  # mmdet draws with tuples only


def _image_mask_dirs(root):
    """Find the folders of images and masks of both splits; a split may have none."""
    found: dict[str, list] = {}
    for split in SPLITS:
        for masks in ('annotations', 'masks', 'labels'):
            pair = [_split_dir(root / x, split) for x in ('images', masks)]
            parent = _split_dir(root, split)
            if None in pair and parent is not None:
                pair = [parent / 'images', parent / masks]
            if None not in pair and all(x.is_dir() for x in pair):
                found.setdefault(split, pair)
    for masks in ('annotations', 'masks', 'labels'):
        pair = [root / 'images', root / masks]
        if 'train' not in found and all(x.is_dir() for x in pair):
            found = dict(train=pair)
    if 'train' not in found:
        raise ValueError(
            f'{root} has no images with masks: images/train and annotations/train are expected '
            '(and val), or images and annotations; annotations may be called masks or labels.'
        )
    return found


def _mask_values(path):
    """Return the values that occur in a mask, sorted."""
    try:
        with Image.open(path) as mask:
            mode = mask.mode
            if mode in ('1', 'L', 'P', 'I', 'I;16'):
                values = np.unique(np.asarray(mask, dtype=np.int64))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f'mask {path} cannot be read ({str(error)[:200]}); replace it, or take it away with '
            'its image.'
        ) from None
    if mode not in ('1', 'L', 'P', 'I', 'I;16'):
        what = 'values that are no whole numbers' if mode == 'F' else 'several channels'
        raise ValueError(
            f'mask {path} has {what} ({mode}): a mask has one channel, whose values are the '
            'indices of the classes (an 8-bit grey or palette PNG).'
        )
    if values[0] < 0 or values[-1] > UNLABELLED:
        raise ValueError(f'mask {path} has the value {values[-1]}; at most 255 are possible.')
    return values


def _values_of(folder, names):
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(_mask_values, [folder / name for name in names])
        values = sorted({int(v) for one in found for v in one} - {UNLABELLED})
    return values


def _discover_mask_classes(dirs, names, reduce_zero):
    """Name classes after the values in the masks of both splits; say which none learns."""
    values = {split: _values_of(dirs[split][1], names[split]) for split in dirs}
    if values['train'] in ([], [0]):
        raise ValueError(
            f'the masks in {dirs["train"][1]} hold nothing but {values["train"] or "255"} (and '
            '255, which means unlabelled): write the index of its class into every pixel, e.g. 1 '
            'instead of 255.'
        )
    highest = max(found[-1] for found in values.values() if found)
    unseen = sorted(set(values.get('val', ())) - set(values['train']))
    remark = []
    if unseen:
        remark = [
            f'custom data: {dirs["val"][1]} holds {", ".join(map(str, unseen[:8]))}'
            f'{", ..." if len(unseen) > 8 else ""}, which no mask for training has: such classes '
            'are not learned and lower the mean.'
        ]
    return [str(value) for value in range(int(reduce_zero), highest + 1)], remark


def _check_mask_values(dirs, names, classes, reduce_zero):
    """Refuse given classes that are too few, as far as a sample of the masks tells."""
    for split, (_, masks) in dirs.items():
        step = max(1, len(names[split]) // MASKS_CHECKED)
        highest = max(_values_of(masks, names[split][::step]), default=0)
        if highest - int(reduce_zero) >= len(classes):
            raise ValueError(
                f'masks in {masks} hold the value {highest}, but there are {len(classes)} '
                f'classes, so {len(classes) - 1 + reduce_zero} is the highest index. List all '
                'classes in classes.txt; if 0 means unlabelled and 1 is the first class: '
                '--cfg-options reduce_zero_label=True'
            )


def _resolve_image_masks(cfg, root, classes):
    reduce_zero = bool(cfg.get('reduce_zero_label', False))
    dirs = _image_mask_dirs(root)
    names = {split: [m for _, m in pair_masks(*pair)] for split, pair in dirs.items()}
    remark = []
    if classes is None:
        classes, remark = _discover_mask_classes(dirs, names, reduce_zero)
    else:
        _check_mask_values(dirs, names, classes, reduce_zero)
    set_classes(cfg, classes)
    base = dict(
        type='coc_mm.ImageMaskFolders',
        metainfo=dict(classes=classes, palette=_palette(len(classes))),
        reduce_zero_label=reduce_zero,
    )
    parts = dict(train='all', val='all') if 'val' in dirs else dict(train='train', val='val')
    sets = {}
    for split, part in parts.items():
        images, masks = (_relative(x, root) for x in dirs.get(split, dirs['train']))
        prefix = dict(img_path=images, seg_map_path=masks)
        sets[split] = dict(base, data_prefix=prefix, part=part)
    _set_datasets(cfg, root, sets['train'], sets['val'])
    found = f'{len(names["train"])} images with masks for training, '
    found += f'{len(names["val"])} for validation' if 'val' in dirs else 'a fifth of them held out'
    return _summary(root, classes, found) + remark
