"""Images with masks: complete a config for segmentation."""

from pathlib import Path

from mmengine.config import Config

from coc_mm.datasets.coco import coco_folders, coco_images, read_coco
from coc_mm.datasets.custom_config import (
    check_held_out,
    hold_out_settings,
    palette,
    relative,
    say_unseen,
    set_classes,
    set_datasets,
    summary,
    trained,
)
from coc_mm.datasets.folder_datasets import (
    MASK_SUFFIXES,
    SPLITS,
    hold_out,
    pair_masks,
    split_folder,
)
from coc_mm.datasets.labels.coco_files import find_coco_files
from coc_mm.datasets.labels.folder import Folder
from coc_mm.datasets.labels.masks import find_masks, index_masks, paint_masks, write_pairs
from coc_mm.datasets.mask_values import mask_values
from coc_mm.utils.images import list_images

__all__ = ['resolve_image_masks']


def _image_mask_folders(root: Path) -> dict[str, tuple]:
    """Find the folders of images and masks of both splits; validation may have none."""
    found: dict[str, tuple] = {}
    whole: dict[str, tuple] = {}
    for masks in ('annotations', 'masks', 'labels'):
        for split in SPLITS:
            parent = split_folder(root, split) or root / split
            images = split_folder(root / 'images', split), split_folder(root / masks, split)
            for pair in (images, (parent / 'images', parent / masks)):
                if all(folder and folder.is_dir() for folder in pair) and _has_masks(pair[1]):
                    found.setdefault(split, pair)
        if (root / 'images').is_dir() and _has_masks(root / masks):
            whole.setdefault('train', (root / 'images', root / masks))
    return found if 'train' in found else whole


def _has_masks(folder: Path | None) -> bool:
    return folder is not None and folder.is_dir() and bool(list_images(folder, MASK_SUFFIXES))


def _mask_pairs(cfg: Config, root: Path, classes: list[str] | None) -> tuple:
    """Images with masks of each split, the classes if they are told, what is said, and where."""
    layout, folder, found = _image_mask_folders(root), Folder(root), None
    if cfg.get('format') is None and not layout:
        found = find_masks(folder)
    if layout:
        name, names, where = 'images and masks', None, {s: pair[1] for s, pair in layout.items()}
        pairs = {
            split: [(str(images / a), str(masks / b)) for a, b in pair_masks(images, masks)]
            for split, (images, masks) in layout.items()
        }
    elif found:
        name, pairs, names = found
        pairs = {s: [(str(root / a), str(root / b)) for a, b in x] for s, x in pairs.items()}
    else:
        try:
            files, name, _ = find_coco_files(root, cfg.get('format'), cfg.get('ann_file'))
        except ValueError as error:
            raise ValueError(
                f'{root} has no images with masks: images/train and annotations/train are '
                'expected (and val), or images and annotations; annotations may be called masks '
                f'or labels. Nor are there objects to be painted: {error}'
            ) from None
        pairs = {}
        for split, file in files.items():
            folders = coco_folders(cfg, root, split, file)
            _, content, _ = read_coco(file, True, folders)
            pairs[split] = paint_masks(content, coco_images(root, folders, file, content))
            names = ['background', *(c['name'] for c in content['categories'])]
        return f'{name}, objects painted into masks', pairs, names, [], {}
    masks = [Path(mask) for each in pairs.values() for _, mask in each]
    used, told, said = index_masks(masks, folder, classes)
    new = dict(zip(masks, used, strict=True))
    if used != masks:
        layout = {}
    pairs = {s: [(a, str(new[Path(b)])) for a, b in each] for s, each in pairs.items()}
    where = {s: pair[1] for s, pair in layout.items()}
    return name, pairs, told or names, [f'custom data: {root}: {x}.' for x in said], where


def resolve_image_masks(cfg: Config, root: Path, classes: list[str] | None) -> list[str]:
    """Complete a config for images with masks; lines to be shown."""
    reduce_zero = bool(cfg.get('reduce_zero_label', False))
    name, pairs, told, remarks, where = _mask_pairs(cfg, root, classes)
    classes = classes or told or None
    folders = _image_mask_folders(root) if where else {}
    if cfg.get('fold'):
        pairs.pop('val', None)
    val = 'val' in pairs
    share, how = hold_out_settings(cfg)
    if not val:
        held = len(hold_out(pairs['train'], 'val', root=root, **how))
        check_held_out(root, held, 'images with masks')
    found = {
        split: mask_values(where.get(split, root), [m for _, m in each])
        for split, each in pairs.items()
    }
    values = {split: sorted(set().union(*each.values())) for split, each in found.items()}
    if values['train'] in ([], [0]):
        raise ValueError(
            f'the masks in {where.get("train", root)} hold nothing but {values["train"] or "255"} '
            '(and 255, which means unlabeled): write the index of its class into every pixel, '
            'e.g. 1 instead of 255.'
        )
    highest = max(each[-1] for each in values.values() if each)
    if classes is None:
        classes = [str(value) for value in range(int(reduce_zero), highest + 1)]
    for split, each in found.items():
        beyond = {n: v[-1] for n, v in each.items() if v and v[-1] - reduce_zero >= len(classes)}
        if beyond:
            mask, value = next(iter(beyond.items()))
            raise ValueError(
                f'{len(beyond)} masks in {where.get(split, root)}, e.g. {mask}, hold the value '
                f'{value}, but there are {len(classes)} classes, so '
                f'{len(classes) - 1 + reduce_zero} is the highest index. List all '
                'classes in classes.txt; if 0 means unlabeled and 1 is the first class: '
                '--cfg-options reduce_zero_label=True'
            )
    unseen = sorted(set(values.get('val', ())) - set(values['train']))
    if unseen:
        shown = ', '.join(map(str, unseen[:8])) + (', ...' if len(unseen) > 8 else '')
        remarks.append(
            f'custom data: {where.get("val", root)} holds {shown}, which no mask for training has: '
            'such classes are not learned and lower the mean.'
        )
    set_classes(cfg, classes)
    base = dict(
        type='coc_mm.ImageMaskFolders',
        metainfo=dict(classes=classes, palette=palette(len(classes))),
        reduce_zero_label=reduce_zero,
        **share,
    )
    sets = []
    for split in SPLITS:
        inner = dict(base, part='all' if val else split)
        if where:
            images, masks = (relative(x, root) for x in folders.get(split, folders['train']))
            inner['data_prefix'] = dict(img_path=images, seg_map_path=masks)
        else:
            inner['data_prefix'] = dict(img_path='', seg_map_path='')
            inner['ann_file'] = str(write_pairs(pairs[split if val else 'train']))
        sets.append(inner)
    set_datasets(cfg, root, *sets)
    used = pairs['train'] if val else hold_out(pairs['train'], 'train', root=root, **how)
    used = trained(cfg, root, used)
    seen = {value - reduce_zero for _, mask in used for value in found['train'][mask]}
    remarks += say_unseen(where.get('train', root), classes, seen)
    held_out = f'{how["fraction"]:g}' if 'fraction' in how else how.get('fold', 'a fifth')
    other = f'{len(pairs["val"])} for validation' if val else f'{held_out} of them held out'
    part = f'{len(used)} of ' if len(used) < len(pairs['train']) else ''
    says = f'{name}: {part}{len(pairs["train"])} images with masks for training, {other}'
    return summary(root, classes, says) + remarks
