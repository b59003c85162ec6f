"""What is held out of own data, and lists of images that datasets read."""

import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from mmengine.dataset import BaseDataset

from coc_mm.registry import DATASETS
from coc_mm.utils.atomic_io import atomic_write
from coc_mm.utils.cache import cache_folder

T = TypeVar('T')


def hold_out(
    names: list[Any],
    part: str,
    fraction: float = 0.2,
    root: str | Path | None = None,
    fold: str | None = None,
    group_by: str | dict[str, str] | None = None,
) -> list[Any]:
    """Choose names, or tuples that start with one, to train with ('train') or held out ('val').

    The choice depends on the number of names alone, so it is the same in every run. At least one
    name is held out, if there are two. Copies of one photograph stay together: names that are the
    same up to ``.rf.``, and files below ``root`` of the same bytes. ``group_by`` keeps names
    together that are the same up to this text, or have the same value in a dict. ``fold`` is
    'K/N': the K-th of N parts is held out.
    """
    if not 0 < fraction < 1:
        raise ValueError(f'val_fraction must be above 0 and below 1, got {fraction!r}')
    groups = groups_of([x if isinstance(x, str) else x[0] for x in names], root, group_by)
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


def groups_of(names: Sequence[str], root: Any = None, group_by: Any = None) -> list[str]:
    """A key for each name, the same for those that must stay together, see :func:`hold_out`."""
    parents: dict[str, str] = {}

    def top(key: str) -> str:
        while parents.get(key, key) != key:
            key = parents[key]
        return key

    def key_of(name: str) -> str:
        base = name.rpartition('/')[2]
        if isinstance(group_by, dict):
            return group_by.get(name, name)
        if group_by and group_by in base:
            return base.split(group_by)[0]
        return base.split('.rf.')[0] if '.rf.' in base else name

    keys = [key_of(name) for name in names]
    by_size = defaultdict(list)
    for name, key in zip(names, keys, strict=True) if root is not None else ():
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
class ImageMaskFolders(BaseDataset):
    """Images and their index masks, for mmseg.

    Args:
        ann_file (str): A text file of pairs of paths, ``image<TAB>mask``.
        metainfo (dict): ``classes`` in the order of their indices, ``palette``.
        reduce_zero_label (bool): Index 0 is unlabeled, as 255 is, and index 1 the first class.
    """

    def __init__(self, reduce_zero_label: bool = False, **kwargs: Any) -> None:
        self.reduce_zero_label = reduce_zero_label
        super().__init__(**kwargs)
        self._metainfo.update(reduce_zero_label=reduce_zero_label, label_map=None)

    def load_data_list(self) -> list[dict]:
        """List the images with what mmseg's ``LoadAnnotations`` asks for."""
        lines = Path(self.ann_file).read_text(encoding='utf-8').splitlines()
        more = dict(label_map=None, reduce_zero_label=self.reduce_zero_label)
        pairs = [line.split('\t') for line in lines]
        return [dict(more, img_path=x, seg_map_path=y, seg_fields=[]) for x, y in pairs]


def write_list(rows: Iterable[Sequence[Any]], mark: str) -> str:
    """Write rows into a file of the cache, one for each content; the path."""
    text = '\n'.join(mark.join(map(str, row)) for row in rows)
    file = cache_folder('lists') / f'{sha256(text.encode()).hexdigest()[:16]}.txt'
    with atomic_write(file) as path:
        path.write_text(text, encoding='utf-8')
    return str(file)
