"""Which archives make up each data set, and what its tree must hold."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from coc_mm.prepare.archives import (
    Entry,
    Limits,
    PrepareError,
    read_tar,
    read_zip,
)
from coc_mm.prepare.imagenet import read_train, read_val

__all__ = ['RECIPES', 'Archive', 'Part', 'Recipe']

Reader = Callable[[dict[str, Path], Limits], Iterator[Entry]]


@dataclass(frozen=True)
class Archive:
    """A file as it is published.

    Args:
        name (str): Of the file.
        size (int): In bytes, as far as known; only to see beforehand whether the disk is large
            enough.
        url (str, optional): Where it may be downloaded without a registration.
        checksum (str, optional): ``'md5:...'`` or ``'sha1:...'`` as published. None where none
            is known for sure; then structure, sizes and, in a zip, the CRC of every file are
            verified.
    """

    name: str
    size: int
    url: str | None = None
    checksum: str | None = None


@dataclass(frozen=True)
class Part:
    """A folder of the tree that can be prepared and checked alone.

    Args:
        name (str): For ``--only``.
        archives (tuple[str, ...]): Names of the archives that it comes from.
        read (Reader): Gives the entries, named relative to the root.
        counts (dict[str, tuple[str, int]]): Folder -> suffix and number of files below it.
        limits (Limits): What its archives may unpack to.
        size (int): About what it needs on the disk, in bytes.
        required (tuple[str, ...]): Files that must be there.
        unit_depth (int): See :func:`~coc_mm.prepare.archives.unpack`.
    """

    name: str
    archives: tuple[str, ...]
    read: Reader
    counts: dict[str, tuple[str, int]]
    limits: Limits
    size: int
    required: tuple[str, ...] = ()
    unit_depth: int = 1


@dataclass(frozen=True)
class Recipe:
    """A data set.

    Args:
        name (str): For the command line.
        root (str): Where the configs look for it.
        archives (tuple[Archive, ...]): What it is published as.
        parts (tuple[Part, ...]): What becomes of that.
        where (str): How to come by archives that may not be downloaded unasked.
        configs (str): Which option of a config names the root.
    """

    name: str
    root: str
    archives: tuple[Archive, ...]
    parts: tuple[Part, ...]
    where: str
    configs: str = field(default='')


@dataclass(frozen=True)
class _Folder:
    """Reads the files of one archive that lie below some folders."""

    archive: str
    folders: tuple[str, ...]

    def __call__(self, paths: dict[str, Path], limits: Limits) -> Iterator[Entry]:
        path = paths[self.archive]
        reader = read_tar if tarfile.is_tarfile(path) else read_zip
        found = 0
        for entry in reader(path, limits):
            if entry.name.startswith(tuple(f'{folder}/' for folder in self.folders)):
                found += 1
                yield entry
        if not found:
            raise PrepareError(
                f'{path} holds nothing below {" or ".join(self.folders)}: it is not the archive '
                'that it is named after.'
            )


GB = 10**9

_IMAGENET = Recipe(
    name='imagenet',
    root='data/imagenet',
    archives=(
        Archive(
            'ILSVRC2012_img_train.tar',
            147_897_477_120,
            checksum='md5:1d675b47d978889d74fa0da5fadfb00e',
        ),
        Archive(
            'ILSVRC2012_img_val.tar',
            6_744_924_160,
            checksum='md5:29b22e2961454d5413ddabcf34fc5622',
        ),
        Archive(
            'ILSVRC2012_devkit_t12.tar.gz',
            3_000_000,
            checksum='md5:fa75699e90414af021442c21a62c3abf',
        ),
    ),
    parts=(
        Part(
            name='train',
            archives=('ILSVRC2012_img_train.tar',),
            read=read_train,
            counts={'train': ('.JPEG', 1_281_167)},
            limits=Limits(200 * GB, 2_000_000),
            size=148 * GB,
            unit_depth=2,
        ),
        Part(
            name='val',
            archives=('ILSVRC2012_img_val.tar', 'ILSVRC2012_devkit_t12.tar.gz'),
            read=read_val,
            counts={'val': ('.JPEG', 50_000)},
            limits=Limits(20 * GB, 100_000),
            size=7 * GB,
        ),
    ),
    where='register at https://image-net.org/download-images (ILSVRC2012: training images for '
    'tasks 1 and 2, validation images, development kit of tasks 1 and 2)',
    configs='--cfg-options train_dataloader.dataset.data_root=ROOT '
    'val_dataloader.dataset.data_root=ROOT test_dataloader.dataset.data_root=ROOT',
)

_COCO_ANNOTATIONS = tuple(f'annotations/instances_{split}2017.json' for split in ('train', 'val'))
_COCO = Recipe(
    name='coco',
    root='data/coco',
    archives=(
        Archive(
            'train2017.zip',
            19_336_861_798,
            'http://images.cocodataset.org/zips/train2017.zip',
            'md5:cced6f7f71b7629ddf16f17bbcfab6b2',
        ),
        Archive(
            'val2017.zip',
            815_585_330,
            'http://images.cocodataset.org/zips/val2017.zip',
            'md5:442b8da7639aecaf257c1dceb8ba8c80',
        ),
        Archive(
            'annotations_trainval2017.zip',
            252_907_541,
            'http://images.cocodataset.org/annotations/annotations_trainval2017.zip',
            'md5:f4bbac642086de4f52a3fdda2de5fa2c',
        ),
    ),
    parts=(
        Part(
            name='train2017',
            archives=('train2017.zip',),
            read=_Folder('train2017.zip', ('train2017',)),
            counts={'train2017': ('.jpg', 118_287)},
            limits=Limits(40 * GB, 200_000),
            size=19_400_000_000,
        ),
        Part(
            name='val2017',
            archives=('val2017.zip',),
            read=_Folder('val2017.zip', ('val2017',)),
            counts={'val2017': ('.jpg', 5_000)},
            limits=Limits(2 * GB, 10_000),
            size=820_000_000,
        ),
        Part(
            name='annotations',
            archives=('annotations_trainval2017.zip',),
            read=_Folder('annotations_trainval2017.zip', ('annotations',)),
            counts={'annotations': ('.json', 2)},
            limits=Limits(3 * GB, 100),
            size=820_000_000,
            required=_COCO_ANNOTATIONS,
        ),
    ),
    where='it can be downloaded from https://cocodataset.org/#download',
    configs='--cfg-options data_root=ROOT/ (with the slash) and its copies',
)

_ADE = 'ADEChallengeData2016'
_ADE20K = Recipe(
    name='ade20k',
    root='data/ade',
    archives=(
        Archive(
            f'{_ADE}.zip',
            967_000_000,
            f'http://data.csail.mit.edu/places/ADEchallenge/{_ADE}.zip',
            'sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7',
        ),
    ),
    parts=(
        Part(
            name=_ADE,
            archives=(f'{_ADE}.zip',),
            read=_Folder(f'{_ADE}.zip', (_ADE,)),
            counts={
                f'{_ADE}/{kind}/{split}': (suffix, count)
                for kind, suffix in (('images', '.jpg'), ('annotations', '.png'))
                for split, count in (('training', 20_210), ('validation', 2_000))
            },
            limits=Limits(4 * GB, 100_000),
            size=1_100_000_000,
        ),
    ),
    where='it can be downloaded from http://sceneparsing.csail.mit.edu',
    configs=f'--cfg-options train_dataloader.dataset.data_root=ROOT/{_ADE} and its copies',
)

_SPLITS = ('h5_files/main_split', 'h5_files/main_split_nobg')
_SCANOBJECTNN = Recipe(
    name='scanobjectnn',
    root='data/scanobjectnn',
    archives=(Archive('h5_files.zip', 13_100_000_000),),
    parts=(
        Part(
            name='h5_files',
            archives=('h5_files.zip',),
            read=_Folder('h5_files.zip', _SPLITS),
            counts={'h5_files/main_split': ('.h5', 2)},
            limits=Limits(60 * GB, 1_000),
            size=5 * GB,
            # PB_T50_RS, the variant of the paper.
            required=tuple(
                f'{_SPLITS[0]}/{split}_objectdataset_augmentedrot_scale75.h5'
                for split in ('training', 'test')
            ),
            unit_depth=2,
        ),
    ),
    where='agree to the terms of use at https://hkust-vgd.github.io/scanobjectnn/, which gives '
    'the link to h5_files.zip',
)

#: Data sets by their name on the command line.
RECIPES = {recipe.name: recipe for recipe in (_IMAGENET, _COCO, _ADE20K, _SCANOBJECTNN)}
