"""Which archives make up each public data set, and what its tree must hold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from coc_mm.errors import PrepareError
from coc_mm.prepare.archives import Entry, read_archive
from coc_mm.prepare.imagenet import read_train, read_val


@dataclass(frozen=True)
class Archive:
    """A file as it is published, with ``checksum`` as in ``'md5:...'``; its size may be a guess."""

    name: str
    size: int
    url: str | None = None
    checksum: str | None = None


@dataclass(frozen=True)
class Part:
    """A part of the tree that can be prepared and checked alone.

    Args:
        counts (dict[str, tuple[str, int]]): Folder -> suffix and number of files below it.
        size (int): About what it needs on the disk, in bytes.
        folders (tuple[str, ...]): What is unpacked of the first archive.
        read (Callable, optional): Gives the entries instead, from a dict of archive name -> path.
    """

    name: str
    archives: tuple[Archive, ...]
    counts: dict[str, tuple[str, int]]
    size: int
    folders: tuple[str, ...] = ()
    read: Callable[[dict[str, Path]], Iterator[Entry]] | None = None
    required: tuple[str, ...] = ()
    unit_depth: int = 1

    def entries(self, folder: Path) -> Iterator[Entry]:
        """Read what the tree gets from the archives in a folder."""
        paths = {archive.name: folder / archive.name for archive in self.archives}
        if self.read:
            yield from self.read(paths)
            return
        path, found = folder / self.archives[0].name, False
        for entry in read_archive(path):
            if entry.name.startswith(tuple(f'{name}/' for name in self.folders)):
                found = True
                yield entry
        if not found:
            raise PrepareError(
                f'{path} holds nothing below {" or ".join(self.folders)}: it is not the archive '
                'that it is named after.'
            )


@dataclass(frozen=True)
class Recipe:
    """A data set: its tree, where to register, which options of the configs name the root."""

    name: str
    root: str
    parts: tuple[Part, ...]
    where: str
    configs: str = '--cfg-options data_root=ROOT'


GB = 10**9

_IMG_TRAIN, _IMG_VAL, _DEVKIT = (
    Archive(f'ILSVRC2012_{name}', size, checksum=f'md5:{md5}')
    for name, size, md5 in (
        ('img_train.tar', 147_897_477_120, '1d675b47d978889d74fa0da5fadfb00e'),
        ('img_val.tar', 6_744_924_160, '29b22e2961454d5413ddabcf34fc5622'),
        ('devkit_t12.tar.gz', 3_000_000, 'fa75699e90414af021442c21a62c3abf'),
    )
)
_TRAIN = {'train': ('.JPEG', 1_281_167)}
_IMAGENET = Recipe(
    name='imagenet',
    root='data/imagenet',
    parts=(
        Part('train', (_IMG_TRAIN,), _TRAIN, 148 * GB, read=read_train, unit_depth=2),
        Part('val', (_IMG_VAL, _DEVKIT), {'val': ('.JPEG', 50_000)}, 7 * GB, read=read_val),
    ),
    where='register at https://image-net.org/download-images (ILSVRC2012: training images for '
    'tasks 1 and 2, validation images, development kit of tasks 1 and 2)',
)


_COCO_ZIPS = (  # name, size, MD5, suffix and number of files, megabytes unpacked
    ('train2017', 19_336_861_798, 'cced6f7f71b7629ddf16f17bbcfab6b2', '.jpg', 118_287, 19_400),
    ('val2017', 815_585_330, '442b8da7639aecaf257c1dceb8ba8c80', '.jpg', 5_000, 820),
    ('annotations', 252_907_541, 'f4bbac642086de4f52a3fdda2de5fa2c', '.json', 2, 820),
)


def _coco_part(name: str, size: int, md5: str, suffix: str, count: int, unpacked: int) -> Part:
    """A part of COCO 2017: one zip with a folder of the part's name."""
    files = tuple(f'annotations/instances_{split}2017.json' for split in ('train', 'val'))
    images = name != 'annotations'
    path = f'zips/{name}.zip' if images else 'annotations/annotations_trainval2017.zip'
    url = f'http://images.cocodataset.org/{path}'
    archive = Archive(Path(path).name, size, url, f'md5:{md5}')
    counts = {name: (suffix, count)}
    return Part(name, (archive,), counts, unpacked * 10**6, (name,), None, () if images else files)


_COCO = Recipe(
    name='coco',
    root='data/coco',
    parts=tuple(_coco_part(*row) for row in _COCO_ZIPS),
    where='it can be downloaded from https://cocodataset.org/#download',
)

_ADE = 'ADEChallengeData2016'
_ADE_URL = f'http://data.csail.mit.edu/places/ADEchallenge/{_ADE}.zip'
_ADE_SHA1 = '219e1696abb36c8ba3a3afe7fb2f4b4606a897c7'
_ADE20K = Recipe(
    name='ade20k',
    root='data/ade',
    parts=(
        Part(
            _ADE,
            (Archive(f'{_ADE}.zip', 967_000_000, _ADE_URL, f'sha1:{_ADE_SHA1}'),),
            {
                f'{_ADE}/{kind}/{split}': (suffix, count)
                for kind, suffix in (('images', '.jpg'), ('annotations', '.png'))
                for split, count in (('training', 20_210), ('validation', 2_000))
            },
            size=1_100_000_000,
            folders=(_ADE,),
        ),
    ),
    where='it can be downloaded from http://sceneparsing.csail.mit.edu',
    configs=f'--cfg-options data_root=ROOT/{_ADE}',
)

_SPLIT = 'h5_files/main_split'
_PB_T50_RS = '_objectdataset_augmentedrot_scale75.h5'  # the variant of the paper
_SCANOBJECTNN = Recipe(
    name='scanobjectnn',
    root='data/ScanObjectNN',
    parts=(
        Part(
            'h5_files',
            (Archive('h5_files.zip', 13_100_000_000),),
            {_SPLIT: ('.h5', 2)},
            size=5 * GB,
            folders=(_SPLIT, f'{_SPLIT}_nobg'),
            required=tuple(f'{_SPLIT}/{part}{_PB_T50_RS}' for part in ('training', 'test')),
            unit_depth=2,
        ),
    ),
    where='agree to the terms of use at https://hkust-vgd.github.io/scanobjectnn/, which gives '
    'the link to h5_files.zip',
    configs='--cfg-options data_root=ROOT/h5_files',
)

#: Data sets by their name on the command line.
RECIPES = {recipe.name: recipe for recipe in (_IMAGENET, _COCO, _ADE20K, _SCANOBJECTNN)}
