"""Images with masks: complete a config for segmentation."""

import os
from pathlib import Path

from mmengine.config import Config

from coc_mm.datasets.coco import read_splits
from coc_mm.datasets.custom_config import (
    check_held_out,
    hold_out_settings,
    palette,
    say_copies,
    say_unseen,
    set_classes,
    set_datasets,
    some,
    summary,
    trained,
)
from coc_mm.datasets.folder_datasets import hold_out, write_list
from coc_mm.datasets.labels.folder import Folder
from coc_mm.datasets.labels.masks import find_masks, index_masks, paint_masks
from coc_mm.datasets.mask_values import UNLABELED, mask_values


def _mask_pairs(cfg: Config, root: Path, classes: list[str] | None) -> tuple:
    """Layout, images with masks of each split, names of the classes, what is said, and where."""
    folder = Folder(root)
    found = None if cfg.get('format') or cfg.get('ann_file') else find_masks(folder)
    if found is None:
        try:
            read, name, said = read_splits(cfg, folder, True)
        except ValueError as error:
            raise ValueError(
                f'{root} has no images with masks: images/train and annotations/train are '
                'expected (and val), or images and annotations; annotations may be called masks '
                f'or labels. Nor are there objects to be painted: {error}'
            ) from None
        pairs = {split: paint_masks(x, images) for split, (_, _, x, images) in read.items()}
        names = ['background', *(c['name'] for c in read['train'][2]['categories'])]
        return f'{name}, objects painted into masks', pairs, classes or names, said, {}
    name, pairs, names, left_out = found
    where = {s: os.path.commonpath([os.path.dirname(m) for _, m in x]) for s, x in pairs.items()}
    file = cfg.get('classes') if isinstance(cfg.get('classes'), str) else None
    masks = [mask for each in pairs.values() for _, mask in each]
    used, told, said = index_masks(masks, folder, classes, file)
    new = dict(zip(masks, used, strict=True))
    pairs = {s: [(image, new[mask]) for image, mask in each] for s, each in pairs.items()}
    # Names that are given count, but a file of colors may lack the background.
    names = [x for x in (classes, names) if x and (not told or not file or len(x) == len(told))]
    remarks = [*(f'left out: {x}' for x in left_out), *said]
    return name, pairs, (names or [told])[0], [f'custom data: {root}: {x}.' for x in remarks], where


def resolve_image_masks(cfg: Config, root: Path, classes: list[str] | None) -> list[str]:
    """Complete a config for images with masks; lines to be shown."""
    reduce_zero = bool(cfg.get('reduce_zero_label', False))
    name, pairs, classes, remarks, where = _mask_pairs(cfg, root, classes)
    if cfg.get('fold'):
        pairs.pop('val', None)
    val = 'val' in pairs
    how = hold_out_settings(cfg)
    if val:
        parts = pairs
    else:
        parts = {x: hold_out(pairs['train'], x, root=root, **how) for x in ('train', 'val')}
        check_held_out(root, len(parts['val']), 'images with masks')
    read = mask_values(root, [mask for each in pairs.values() for _, mask in each])
    found = {mask: [v for v in values if v != UNLABELED] for mask, (_, values) in read.items()}
    values = {s: sorted({v for _, mask in x for v in found[mask]}) for s, x in pairs.items()}
    if values['train'] in ([], [0]):
        raise ValueError(
            f'the masks in {where.get("train", root)} hold nothing but {values["train"] or "255"} '
            '(and 255, which means unlabeled): write the index of its class into every pixel, '
            'e.g. 1 instead of 255.'
        )
    if classes is None:
        highest = max(v for each in values.values() for v in each)
        classes = [str(value) for value in range(int(reduce_zero), highest + 1)]
    beyond = {mask: v[-1] for mask, v in found.items() if v and v[-1] - reduce_zero >= len(classes)}
    if beyond:
        mask, value = next(iter(beyond.items()))
        raise ValueError(
            f'{len(beyond)} masks of {root}, e.g. {mask}, hold the value {value}, but there are '
            f'{len(classes)} classes, so {len(classes) - 1 + reduce_zero} is the highest index. '
            'List all classes in classes.txt; if 0 means unlabeled and 1 is the first class: '
            '--cfg-options reduce_zero_label=True'
        )
    if unseen := sorted(set(values.get('val', ())) - set(values['train'])):
        remarks.append(
            f'custom data: {where.get("val", root)} holds {some(unseen)}, which no mask for '
            'training has: such classes are not learned and lower the mean.'
        )
    set_classes(cfg, classes)
    base = dict(
        type='coc_mm.ImageMaskFolders',
        metainfo=dict(classes=classes, palette=palette(len(classes))),
        reduce_zero_label=reduce_zero,
        data_prefix=dict(img_path='', seg_map_path=''),
    )
    lists = (dict(base, ann_file=write_list(parts[split], '\t')) for split in ('train', 'val'))
    set_datasets(cfg, root, *lists)
    used = trained(cfg, root, parts['train'])
    seen = {value - reduce_zero for _, mask in used for value in found[mask]}
    remarks += say_unseen(where.get('train', root), classes, seen)
    if val:
        remarks += say_copies(root, *([image for image, _ in pairs[x]] for x in ('train', 'val')))
    held_out = f'{how["fraction"]:g}' if 'fraction' in how else how.get('fold', 'a fifth')
    other = f'{len(pairs["val"])} for validation' if val else f'{held_out} of them held out'
    part = f'{len(used)} of ' if len(used) < len(pairs['train']) else ''
    says = f'{name}: {part}{len(pairs["train"])} images with masks for training, {other}'
    return summary(root, classes, says) + remarks
