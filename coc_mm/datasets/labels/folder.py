"""The files of an exported folder, found by name, and the split that each belongs to."""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from coc_mm.utils.images import IMAGE_SUFFIXES, list_files

_SPLIT = re.compile(
    '(?:(?P<train>train|training)|(?P<val>val|valid|validation|dev|eval)|(?P<test>test|testing))'
    '(?:2017|annot|[_-]?(?:set|data|images))?',
    re.IGNORECASE,
)


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

    def known(self, entries: list[dict | None], kinds: Iterable[Any]) -> list[dict]:
        """The entries that are some; the others are counted by kind."""
        for entry, kind in zip(entries, kinds, strict=True):
            self.left_out[f'annotations of the kind {kind}'] += entry is None
        return [entry for entry in entries if entry]


class Folder:
    """The files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reading = ''  # the last file that was read
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

    def data(self, name: str) -> bytes:
        """The content of a file."""
        self.reading = name
        return (self.root / name).read_bytes()

    def text(self, name: str) -> str:
        """The text of a file; a ValueError names one that is none."""
        try:
            return self.data(name).decode('utf-8-sig')
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
        splits = {x: split_of(str(Path(x).parent)) for x in same}
        for fits in (
            lambda x: x == (near / path).as_posix(),
            lambda x: f'/{x}'.endswith(f'/{path.as_posix()}') and splits[x] == split,
            lambda x: x == path.as_posix(),
            lambda x: Path(x).parent == near,
            lambda x: splits[x] == split,
            lambda x: re.search(r'(^|/)(JPEG)?images/', x, re.IGNORECASE),
            lambda x: True,
        ):
            found = [x for x in same if fits(x)]
            if len(found) == 1:
                return found[0]
        return None


def split_of(path: str, whole: bool = False) -> str | None:
    """Read 'train', 'val' or 'test' out of a path: its last part that tells.

    ``whole``: the parts are no more than the name of a split.
    """
    for part in reversed(path.split('/')):
        for word in [part] if whole else re.split('[^A-Za-z]+', part):
            if found := _SPLIT.fullmatch(word):
                return found.lastgroup
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


def listed_splits(folder: Folder, kind: str) -> dict[str, str]:
    """Splits of stems, as ``ImageSets/Main/train.txt`` and others list them."""
    found: dict[str, str] = {}
    for file in folder.ending('.txt'):
        parts = file.casefold().split('/')
        if 'imagesets' not in parts or kind not in parts or '_' in parts[-1]:
            continue
        for row in map(str.split, folder.text(file).splitlines()):
            if row and (parts[-1] != 'trainval.txt' or Path(row[0]).stem not in found):
                found[Path(row[0]).stem] = split_of(parts[-1]) or 'train'
    return found


def class_names(text: str, file: str) -> list[str]:
    """The names of a file: one a line, or a column of a CSV beside values or colors."""
    if not file.casefold().endswith('.csv'):
        return [line.strip() for line in text.splitlines() if line.strip()]
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
    header = [cell.casefold() for cell in rows[0]] if rows else []
    named = [i for i, c in enumerate(header) if re.fullmatch('(class.*)?(name|class|label)s?', c)]
    if not named:
        return [next((x for x in row if not x.isdigit()), '') for row in rows]
    rows = [row for row in rows[1:] if len(row) > named[0]]
    if header[0] == 'pixel value':
        names = {int(row[0]): row[named[0]] for row in rows}
        return [names.get(i, str(i)) for i in range(max(names, default=-1) + 1)]
    return [row[named[0]] for row in rows]


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is shown, turned as its EXIF says."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f'image {path} cannot be read: {str(error)[:200]}') from None
    return (height, width) if turned else (width, height)
