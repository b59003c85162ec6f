"""ImageNet's archives: a tar of a tar per class, and validation images with their classes apart."""

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from coc_mm.errors import PrepareError
from coc_mm.prepare.archives import Entry, explain_damage, read_archive

_SYNSET = re.compile(r'n\d{8}')
_IMAGE = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')


def read_train(paths: dict[str, Path]) -> Iterator[Entry]:
    """Read ``ILSVRC2012_img_train.tar`` as ``train/<synset>/<image>``, class by class."""
    path = paths['ILSVRC2012_img_train.tar']
    for outer in read_archive(path):
        synset, _, suffix = outer.name.partition('.')
        if suffix != 'tar' or not _SYNSET.fullmatch(synset):
            raise PrepareError(f'{path}: {outer.name!r} is not the tar of a class; not ImageNet.')
        with outer.open() as stream:
            for image in read_archive(path, stream):
                yield image._replace(name=f'train/{synset}/{image.name.rsplit("/", 1)[-1]}')


def read_devkit(path: Path) -> list[str]:
    """Read the synset of each validation image from ``ILSVRC2012_devkit_t12.tar.gz``."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ModuleNotFoundError as error:
        raise PrepareError(
            'reading the development kit of ImageNet needs SciPy: pip install scipy'
        ) from error
    wanted = {}
    with explain_damage(path):
        for entry in read_archive(path):
            name = entry.name.rsplit('/', 1)[-1]
            if name in ('meta.mat', 'ILSVRC2012_validation_ground_truth.txt'):
                with entry.open() as stream:
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
        return [names[int(number)] for number in truth]
    except (KeyError, ValueError, TypeError, IndexError, MatReadError) as error:
        raise PrepareError(
            f'{path} is not the development kit of ILSVRC2012, tasks 1 and 2 ({error!r}).'
        ) from error


def read_val(paths: dict[str, Path]) -> Iterator[Entry]:
    """Read ``ILSVRC2012_img_val.tar`` as ``val/<synset>/<image>``, by the development kit."""
    path = paths['ILSVRC2012_img_val.tar']
    synsets = read_devkit(paths['ILSVRC2012_devkit_t12.tar.gz'])
    for image in read_archive(path):
        name = image.name.rsplit('/', 1)[-1]
        found = _IMAGE.fullmatch(name)
        if found is None or not 1 <= int(found[1]) <= len(synsets):
            raise PrepareError(f'{path}: {image.name!r} has no class in the development kit.')
        yield image._replace(name=f'val/{synsets[int(found[1]) - 1]}/{name}')
