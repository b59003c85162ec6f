"""The files of an exported folder, found by name, and the split that each belongs to."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from coc_mm.datasets.folder_datasets import SPLITS
from coc_mm.utils.images import IMAGE_SUFFIXES, list_files

__all__ = ['Export', 'Folder', 'choose_splits', 'shown_size', 'split_of']


class Export:
    """What a tool wrote: images with their annotations, each of a split.

    ``images`` maps a path below the root to annotations as in COCO, with ``label`` (str) instead
    of a category; ``names`` are the classes in the order of the export, where it has one.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = list(names)
        self.images: dict[str, list[dict]] = {}
        self.splits: dict[str, str] = {}
        self.columns: dict[str, dict[str, str]] = {}
        self.left_out: Counter[str] = Counter()

    def add(self, image: str | None, entries: Iterable[dict], split: str | None = None) -> None:
        """Add annotations of an image; None is one that is not there."""
        if image is None:
            self.left_out['annotated images that are not there'] += 1
            return
        self.images.setdefault(image, []).extend(entries)
        self.splits[image] = split or split_of(str(Path(image).parent)) or 'train'


class Folder:
    """The files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = list_files(root)
        self.images = [name for name in self.files if name.lower().endswith(IMAGE_SUFFIXES)]

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self.images:
            found[Path(name).stem.casefold()].append(name)
        return found

    def ending(self, *suffixes: str) -> list[str]:
        """The files whose name ends so, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def text(self, name: str) -> str:
        """The text of a file; a ValueError names one that is none."""
        try:
            return (self.root / name).read_text(encoding='utf-8-sig')
        except (OSError, UnicodeError) as error:
            raise ValueError(f'{self.root / name} cannot be read as text: {error}') from None

    def image(self, name: Any, beside: str) -> str | None:
        """Find an image by a name that may hold a stale path, or lack its suffix.

        ``beside`` is the file that names it: its folder and its split are preferred.
        """
        path = Path(str(name).replace('\\', '/'))
        keys = [path.stem.casefold(), path.name.casefold()]
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            keys.reverse()
        stems = self._by_stem.get(keys[0]) or self._by_stem.get(keys[1]) or []
        near, split = Path(beside).parent, split_of(beside)
        same = [x for x in stems if Path(x).name == path.name] or stems
        for fits in (
            lambda x: x in (path.as_posix(), (near / path).as_posix()),
            lambda x: f'/{x}'.endswith(f'/{path.as_posix()}') and split_of(x) == split,
            lambda x: Path(x).parent == near,
            lambda x: split_of(x) == split,
            lambda x: True,
        ):
            found = [x for x in same if fits(x)]
            if len(found) == 1:
                return found[0]
        return None

    def summary(self) -> str:
        """Which kinds of files there are, and how many."""
        kinds = Counter(Path(name).suffix.lower() or Path(name).name for name in self.files)
        return ', '.join(f'{kind} ({n})' for kind, n in kinds.most_common(6)) or 'no files'


def split_of(path: str) -> str | None:
    """Read 'train', 'val' or 'test' out of a path: its last part that tells."""
    for part in reversed(path.casefold().split('/')):
        for word in re.split(r'[^a-z]+', part):
            word = word.removesuffix('annot')
            if word in ('test', 'testing'):
                return 'test'
            found = next((s for s, names in SPLITS.items() if word in names), None)
            if found:
                return found
    return None


def choose_splits(splits: Iterable[str]) -> dict[str, str]:
    """What is trained and validated on: 'test' validates where there is no 'val'."""
    there = set(splits)
    chosen: dict[str, str] = {split: split for split in ('train', 'val') if split in there}
    if 'train' not in chosen:
        chosen['train'] = chosen.pop('val', 'test')
    elif 'test' in there:
        chosen.setdefault('val', 'test')
    return chosen


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is shown, turned as its EXIF says."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f'image {path} cannot be read: {str(error)[:200]}') from None
    return (height, width) if turned else (width, height)
