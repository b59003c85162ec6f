"""What the kinds of own data share: what a config says of them, and writing into it."""

import colorsys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from coc_mm.datasets.folder_datasets import groups_of, take
from coc_mm.datasets.labels.folder import class_names

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Settings of a dataset that say where the data lie, which are found out.
_FOUND = ('type', 'data_root', 'ann_file', 'data_prefix', 'metainfo', 'split', 'fold', 'group_by')


def set_arch(cfg: Config) -> None:
    """Give neck or head the widths of the backbone that ``arch`` chooses."""
    if not cfg.get('arch'):
        return
    from coc_mm.models import ContextCluster

    if cfg.arch not in ContextCluster.arch_zoo:
        raise ValueError(f'arch={cfg.arch}: one of {", ".join(ContextCluster.arch_zoo)} is due')
    cfg.model.backbone.arch = cfg.arch
    dims = list(ContextCluster.arch_zoo[cfg.arch]['dims'])
    if 'in_channels' in cfg.model.neck:
        cfg.model.neck.in_channels = dims
    else:
        cfg.model.head.in_channels = dims[-1]


def set_classes(cfg: Config, classes: Sequence[str]) -> None:
    """Give a config its classes without looking at data, in place, as for inference."""
    cfg.classes = list(classes)
    for child in dicts([cfg.get('model'), cfg.get('data_preprocessor')]):
        if 'num_classes' in child:
            child['num_classes'] = len(classes)


def dicts(node: Any) -> Iterator[dict]:
    """All dicts of a nested config."""
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts(child)
    elif isinstance(node, dict):
        yield node
        yield from dicts(list(node.values()))


def given_classes(cfg: Config, root: Path) -> list[str] | None:
    """The names given by the config or a file, or None."""
    given, where = cfg.get('classes'), 'classes'
    for dataset in inner_datasets((cfg.get('train_dataloader') or {}).get('dataset') or {}):
        given = given or (dataset.get('metainfo') or {}).get('classes')
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
            given = class_names(file.read_text(encoding='utf-8-sig'), file.name)
        except (OSError, UnicodeError) as error:
            raise ValueError(f'{file} is no text file of class names: {error}') from None
    if not isinstance(given, (list, tuple)):
        raise ValueError(f'classes={given}: list names, classes=[cat,dog], or name a text file')
    names = [name for name in (str(name).strip() for name in given) if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ValueError(f'{where}: ' + (f'{twice[0]} is listed twice' if twice else 'no names'))
    return names


def relative(path: Path, root: Path) -> str:
    """A path below the root, which is an empty text itself."""
    text = path.relative_to(root).as_posix()
    return '' if text == '.' else text


def below(path: Path, root: Path) -> str:
    """A path below the root, or the absolute one."""
    return relative(path, root) if path.is_relative_to(root) else str(path.absolute())


def inner_datasets(dataset: dict) -> list[dict]:
    """The datasets inside of wrappers, or the dataset itself."""
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner is None:
        return [dataset]
    children = inner if isinstance(inner, (list, tuple)) else [inner]
    return [found for child in children for found in inner_datasets(child)]


def has_folds(loader: Any) -> bool:
    """Whether a loader's data are folds of mmpretrain's ``KFoldDataset``."""
    return any(str(d.get('type', '')).endswith('KFoldDataset') for d in dicts(loader))


def set_datasets(
    cfg: Config, root: Path, train: dict, val: dict, whole: dict | None = None
) -> None:
    """Write what was found into the datasets; ``whole`` is what ``KFoldDataset`` chooses from."""
    for name in _LOADERS:
        if cfg.get(name) is not None:
            found = train if name.startswith('train') else val
            found = (whole or train) if has_folds(cfg[name]) else found
            for inner in inner_datasets(cfg[name].dataset):
                kept = {k: v for k, v in (inner.get('metainfo') or {}).items() if k != 'classes'}
                for key in _FOUND:
                    inner.pop(key, None)
                inner.update(found, data_root=str(root))
                meta = found['metainfo']
                if len(kept.get('palette') or ()) != len(meta['classes']):
                    kept.pop('palette', None)  # of other classes
                inner['metainfo'] = {**meta, **kept}


def summary(root: Path, classes: list[str], found: str) -> list[str]:
    """The first line: what was found, and the classes."""
    return [f'custom data: {root}: {found}; {len(classes)} classes ({some(classes)})']


def hold_out_settings(cfg: Config) -> dict:
    """How a part is held out, as :func:`hold_out` takes it; ``val_fraction`` of datasets counts."""
    loaders = [cfg[name] for name in _LOADERS if cfg.get(name)]
    inner = [dataset for loader in loaders for dataset in inner_datasets(loader.dataset)]
    given = {dataset.pop('val_fraction') for dataset in inner if 'val_fraction' in dataset}
    if len(given) > 1:
        raise ValueError(f'val_fraction differs between the datasets ({sorted(given)})')
    if given:
        cfg.val_fraction = given.pop()
    names = dict(val_fraction='fraction', fold='fold', group_by='group_by')
    return {name: cfg[key] for key, name in names.items() if cfg.get(key) is not None}


def trained(cfg: Config, root: Path, items: list) -> list:
    """The items that the training datasets use, after their ``indices``."""
    inner = inner_datasets(cfg.train_dataloader.dataset) if cfg.get('train_dataloader') else [{}]
    used = [item for dataset in inner for item in take(items, dataset.get('indices'))]
    if not used:
        raise ValueError(f'{root}: the indices of train_dataloader.dataset leave no image')
    return used


def check_held_out(root: Path, count: int, what: str) -> None:
    """Refuse data of which nothing can be held out."""
    if not count:
        raise ValueError(
            f'{root} has no validation split, and too few {what} to hold some out (copies of one '
            'photograph stay together); add images, or a folder val beside train '
            '(docs/custom_data.md).'
        )


def say_unseen(folder: Path | str, classes: list[str], seen: set[int]) -> list[str]:
    """Name the classes that nothing is trained on of."""
    unseen = [name for index, name in enumerate(classes) if index not in seen]
    return [f'custom data: {folder}: nothing to train on of {some(unseen)}.'] if unseen else []


def say_copies(root: Path, train: list[str], val: list[str]) -> list[str]:
    """Say how many images for validation are copies of images for training."""
    groups = groups_of([*train, *val], root)
    known = set(groups[: len(train)])
    count = sum(group in known for group in groups[len(train) :])
    says = f'custom data: {root}: {count} of {len(val)} images for validation are copies of images '
    says += 'for training (the same bytes, or names up to .rf.), so the scores say too much.'
    return [says] if count else []


def some(names: Sequence[Any]) -> str:
    """The first eight of many names."""
    return ', '.join(map(str, names[:8])) + (', ...' if len(names) > 8 else '')


def palette(count: int) -> list[tuple]:
    """Colors around the wheel, neighbors far apart."""
    wheel = [colorsys.hsv_to_rgb(i * 0.618 % 1, 0.75, 0.95) for i in range(count)]
    return [tuple(round(255 * x) for x in color) for color in wheel]  # mmdet draws with tuples only
