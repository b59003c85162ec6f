"""ImageNet's archives: a tar of a tar per class, and validation images with their classes apart."""

import re
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from coc_mm.prepare.archives import (
    Entry,
    Limits,
    PrepareError,
    naming_damage,
    read_tar,
)

__all__ = ['read_devkit', 'read_train', 'read_val']

_SYNSET = re.compile(r'n\d{8}')
_IMAGE = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')


def read_train(paths: dict[str, Path], limits: Limits) -> Iterator[Entry]:
    """Go through the training images: a tar that holds a tar for each of the classes.

    Args:
        paths (dict[str, Path]): ``ILSVRC2012_img_train.tar`` -> where it lies.
        limits (Limits): What it may hold.

    Yields:
        Entry: ``train/<synset>/<image>``, class by class.

    Raises:
        PrepareError: Something else than tars of images is in there.
    """
    path = paths['ILSVRC2012_img_train.tar']
    left = limits
    for outer in read_tar(path, limits):
        synset, _, suffix = outer.name.partition('.')
        if suffix != 'tar' or not _SYNSET.fullmatch(synset):
            raise PrepareError(f'{path}: {outer.name!r} is not the tar of a class; not ImageNet.')
        # No two classes together may exceed the limits either.
        with outer.open() as stream:
            for image in read_tar(f'{path}: {outer.name}', left, stream):
                left = Limits(left.bytes - image.size, left.members - 1)
                yield replace(image, name=f'train/{synset}/{image.name.rsplit("/", 1)[-1]}')


def read_devkit(path: Path) -> list[str]:
    """Read the classes of the validation images from the development kit.

    Args:
        path (Path): ``ILSVRC2012_devkit_t12.tar.gz``.

    Returns:
        list[str]: The synset of each image, in the order of their numbers.

    Raises:
        PrepareError: The kit lacks what is needed, or its parts do not fit together.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ModuleNotFoundError as error:
        raise PrepareError(
            'reading the development kit of ImageNet needs SciPy: pip install scipy'
        ) from error
    wanted = {}
    for entry in read_tar(path, Limits(200_000_000, 10_000)):
        name = entry.name.rsplit('/', 1)[-1]
        if name in ('meta.mat', 'ILSVRC2012_validation_ground_truth.txt'):
            with naming_damage(path), entry.open() as stream:
                wanted[name] = stream.read()
    try:
        synsets = loadmat(BytesIO(wanted['meta.mat']), squeeze_me=True)['synsets']
        # Inner nodes of the hierarchy have numbers too, after those of the classes.
        names = {
            int(row['ILSVRC2012_ID']): str(row['WNID'])
            for row in synsets
            if int(row['num_children']) == 0
        }
        truth = wanted['ILSVRC2012_validation_ground_truth.txt'].split()
        found = [names[int(number)] for number in truth]
    except (KeyError, ValueError, TypeError, IndexError, MatReadError) as error:
        raise PrepareError(
            f'{path} is not the development kit of ILSVRC2012, tasks 1 and 2 ({error!r}).'
        ) from error
    wrong = [name for name in found if not _SYNSET.fullmatch(name)]
    if wrong:
        raise PrepareError(f'{path}: {wrong[0]!r} is no synset.')
    return found


def read_val(paths: dict[str, Path], limits: Limits) -> Iterator[Entry]:
    """Go through the validation images, naming each by its class.

    Args:
        paths (dict[str, Path]): The archives of images and of the development kit.
        limits (Limits): What the former may hold.

    Yields:
        Entry: ``val/<synset>/<image>``.

    Raises:
        PrepareError: An image has another name than ImageNet's, or no class.
    """
    path = paths['ILSVRC2012_img_val.tar']
    synsets = read_devkit(paths['ILSVRC2012_devkit_t12.tar.gz'])
    for image in read_tar(path, limits):
        name = image.name.rsplit('/', 1)[-1]
        found = _IMAGE.fullmatch(name)
        if found is None or not 1 <= int(found[1]) <= len(synsets):
            raise PrepareError(f'{path}: {image.name!r} has no class in the development kit.')
        yield replace(image, name=f'val/{synsets[int(found[1]) - 1]}/{name}')
