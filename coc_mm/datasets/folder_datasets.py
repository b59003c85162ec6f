"""Datasets that are a folder, without a task library: images in class folders or with masks."""

import os
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from mmengine.dataset import BaseDataset

from coc_mm.registry import DATASETS
from coc_mm.utils.images import IMAGE_SUFFIXES, list_images

__all__ = ['ClassFolders', 'ImageMaskFolders']

MASK_SUFFIXES = ('.png', '.bmp', '.tif', '.tiff')
_STEMS = {
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation', 'dev', 'eval', 'test', 'testing'),
}
_ENDS = ('', '2017', *(mark + end for end in ('set', 'data', 'images') for mark in ('', '_', '-')))
#: Names of the folders and files of a split, in any case, the preferred first.
SPLITS = {
    split: tuple(stem + end for stem in stems for end in _ENDS) for split, stems in _STEMS.items()
}
T = TypeVar('T')


def list_class_folders(folder: Path) -> list[str]:
    """List the names of subfolders, sorted, but for those that start with ``.`` or ``_``."""
    return sorted(x.name for x in folder.iterdir() if x.is_dir() and x.name[0] not in '._')


def split_folder(parent: Path, split: str) -> Path | None:
    """Find the folder of a split, 'train' or 'val', below another; None if there is none."""
    found = {}
    if parent.is_dir():
        found = {x.name.casefold(): x for x in sorted(parent.iterdir()) if x.is_dir()}
    return next((found[name] for name in SPLITS[split] if name in found), None)


def other_splits(root: Path, splits: dict) -> list[str]:
    """Names of folders that are splits as well, and not used."""
    known = {name for names in SPLITS.values() for name in names}
    there = [name for name in list_class_folders(root) if name.casefold() in known]
    return [x for x in there if root / x not in splits.values() and list_class_folders(root / x)]


def check_no_splits(root: Path, names: list[str]) -> None:
    """Refuse folders that all hold the same folders: splits of names that are not known."""
    inside = [set(list_class_folders(root / name)) for name in names]
    same = set.intersection(*inside) if len(inside) > 1 else set()
    if len(same) > 1:
        raise ValueError(
            f'{root}: {", ".join(names[:5])} all hold the folders {", ".join(sorted(same)[:5])}, '
            'so they look like splits, not like classes: call them train and val.'
        )


def hold_out(
    names: list[Any],
    part: str,
    fraction: float = 0.2,
    root: str | Path | None = None,
    fold: str | None = None,
    group_by: str | dict[str, str] | None = None,
) -> list[Any]:
    """Choose names to train with ('train') or those held out ('val'); 'all' chooses all.

    The choice depends on the number of names alone, so it is the same in every run. At least one
    name is held out, if there are two. Copies of one photograph stay together: names that are the
    same up to ``.rf.``, and files below ``root`` of the same bytes. ``group_by`` keeps names
    together that are the same up to this text, or have the same value in a dict. ``fold`` is
    'K/N': the K-th of N parts is held out.
    """
    if part not in ('all', 'train', 'val'):
        raise ValueError(f'part must be one of all, train, val, got {part!r}')
    if not 0 < fraction < 1:
        raise ValueError(f'val_fraction must be above 0 and below 1, got {fraction!r}')
    if part == 'all':
        return names
    groups = _groups([str(x) if isinstance(x, str) else x[0] for x in names], root, group_by)
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    count = min(max(1, round(len(order) * fraction)), len(order) - 1)
    held = set(random.Random(len(order)).sample(range(len(order)), max(0, count)))
    if fold is not None:
        found = re.fullmatch(r'(\d+)/(\d+)', str(fold))
        if not found or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
            raise ValueError(f'fold={fold}: K/N is due, the K-th of N parts, e.g. fold=2/5')
        if len(order) > 1:
            mixed = random.Random(len(order)).sample(range(len(order)), len(order))
            held = set(mixed[int(found[1]) - 1 :: int(found[2])])
    return [x for x, g in zip(names, groups, strict=True) if (order[g] in held) == (part == 'val')]


def _groups(names: list[str], root: Any, group_by: str | dict[str, str] | None) -> list[str]:
    """A key for each name, the same for those that must stay together."""
    parents: dict[str, str] = {}

    def top(key: str) -> str:
        while parents.get(key, key) != key:
            key = parents[key]
        return key

    def key_of(name: str) -> str:
        folder, _, base = name.rpartition('/')
        if isinstance(group_by, dict):
            return group_by.get(name, name)
        if group_by and group_by in base:
            return base.split(group_by)[0]
        return f'{folder}/{base.split(".rf.")[0]}' if '.rf.' in base else name

    keys = [key_of(name) for name in names]
    by_size = defaultdict(list)
    for name, key in zip(names, keys, strict=True):
        if root is not None:
            by_size[os.path.getsize(Path(root, name))].append((name, key))
    for same in by_size.values():
        known: dict[bytes, str] = {}
        for name, key in same if len(same) > 1 else ():
            digest = sha256(Path(root, name).read_bytes()).digest()
            parents[top(key)] = top(known.setdefault(digest, key))
    return [top(key) for key in keys]


def take(items: list[T], indices: int | Sequence[int] | None) -> list[T]:
    """Choose those that the ``indices`` of a dataset leave, as mmengine does."""
    if isinstance(indices, int):
        return items[:indices] if indices >= 0 else items[indices:]
    return items if indices is None else [items[i] for i in indices]


@DATASETS.register_module()
class ClassFolders(BaseDataset):
    """Images in one folder per class, for mmpretrain.

    Args:
        data_prefix (dict): ``img_path``, the folder below it that holds the class folders.
        metainfo (dict): ``classes``, the names of the classes in the order of their labels.
        folders (Sequence[str], optional): Name of each class's folder, if it is another.
        part (str): 'all', or 'train' and 'val' to hold images of every class out.
        val_fraction (float): Share of each class held out.
        fold, group_by (str, optional): See :func:`hold_out`.
    """

    def __init__(
        self,
        data_root: str = '',
        folders: Sequence[str] | None = None,
        part: str = 'all',
        val_fraction: float = 0.2,
        fold: str | None = None,
        group_by: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.folders = folders
        self.held: dict[str, Any] = dict(
            part=part, fraction=val_fraction, fold=fold, group_by=group_by
        )
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images, each with ``img_path`` (str) and ``gt_label`` (int)."""
        root = Path(self.data_prefix['img_path'])
        items = [
            dict(img_path=str(root / name / image), gt_label=label)
            for label, name in enumerate(self.folders or self.metainfo['classes'])
            for image in hold_out(list_images(root / name), root=root / name, **self.held)
        ]
        if not items:
            raise ValueError(f'{root} holds no images ({", ".join(IMAGE_SUFFIXES)})')
        return items

    def get_cat_ids(self, idx: int) -> list[int]:
        """The label of an image in a list, as ``ClassBalancedDataset`` wants it."""
        return [self.get_data_info(idx)['gt_label']]


@DATASETS.register_module()
class ImageMaskFolders(BaseDataset):
    """Images in one folder, index masks of the same names in another, for mmseg.

    Args:
        data_prefix (dict): ``img_path`` and ``seg_map_path``, folders below it.
        metainfo (dict): ``classes`` in the order of their indices, ``palette``.
        reduce_zero_label (bool): Index 0 is unlabeled, as 255 is, and index 1 the first class.
        ann_file (str): A text file of pairs, ``image<TAB>mask``, instead of equal names.
        part (str): As for :class:`ClassFolders`, like ``val_fraction``, ``fold``, ``group_by``.
    """

    def __init__(
        self,
        data_root: str = '',
        reduce_zero_label: bool = False,
        part: str = 'all',
        val_fraction: float = 0.2,
        fold: str | None = None,
        group_by: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.reduce_zero_label = reduce_zero_label
        self.held: dict[str, Any] = dict(
            part=part, fraction=val_fraction, fold=fold, group_by=group_by
        )
        super().__init__(data_root=data_root, **kwargs)
        self._metainfo.update(reduce_zero_label=reduce_zero_label, label_map=None)

    def load_data_list(self) -> list[dict]:
        """List the images with what mmseg's ``LoadAnnotations`` asks for."""
        images, masks = self.data_prefix['img_path'], self.data_prefix['seg_map_path']
        if self.ann_file:
            lines = Path(self.ann_file).read_text(encoding='utf-8').splitlines()
            pairs = [(line.split('\t')[0], line.split('\t')[1]) for line in lines]
        else:
            pairs = pair_masks(images, masks)
        pairs = hold_out(pairs, root=images, **self.held)
        return [
            dict(
                img_path=str(Path(images, image)),
                seg_map_path=str(Path(masks, mask)),
                label_map=None,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for image, mask in pairs
        ]


def pair_masks(images: str | Path, masks: str | Path) -> list[tuple[str, str]]:
    """Find the mask of every image below a folder: its path but for the suffix is the same."""
    found = list_images(images)
    if not found:
        raise ValueError(f'{images} holds no images ({", ".join(IMAGE_SUFFIXES)})')
    by_stem = {mask.rsplit('.', 1)[0]: mask for mask in list_images(masks, MASK_SUFFIXES)}
    missing = [name for name in found if name.rsplit('.', 1)[0] not in by_stem]
    if missing:
        stem = missing[0].rsplit('.', 1)[0]
        raise ValueError(
            f'{len(missing)} of {len(found)} images in {images} have no mask in {masks}, e.g. '
            f'{missing[0]} needs {stem}.png; add the masks, or take the images away.'
        )
    return [(name, by_stem[name.rsplit('.', 1)[0]]) for name in found]
