"""The files of an exported folder and their splits."""

import pytest
from PIL import Image

from coc_mm.datasets.labels.folder import Folder, choose_splits, shown_size, split_of

SPLITS = {
    'train/images/1.jpg': 'train',
    'obj_Validation_data/1.jpg': 'val',
    'annotations/instances_val2017.json': 'val',
    'valid/labels': 'val',
    'test/_annotations.csv': 'test',
    'trainannot': 'train',
    'annotations/instances_default.json': None,
    'constraints/trainer': None,
}


def test_splits_of_paths():
    assert {path: split_of(path) for path in SPLITS} == SPLITS
    assert choose_splits(['train', 'test']) == {'train': 'train', 'val': 'test'}
    assert choose_splits(['train', 'val', 'test']) == {'train': 'train', 'val': 'val'}
    assert choose_splits(['test']) == {'train': 'test'}


@pytest.mark.parametrize(
    ('name', 'beside', 'expected'),
    [
        ('C:\\old\\1.jpg', 'train/1.json', 'train/1.jpg'),
        ('1', 'val/labels/1.xml', 'val/1.JPG'),
        ('a.b', 'x.xml', 'a.b.png'),
        ('1', 'all.json', None),
        ('none.jpg', 'all.json', None),
    ],
)
def test_images_by_stale_names(tmp_path, name, beside, expected):
    for file in ('train/1.jpg', 'val/1.JPG', 'a.b.png', 'a.png'):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    folder = Folder(tmp_path)
    assert folder.image(name, beside) == expected


def test_sizes_are_those_of_the_image_as_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (40, 20)).save(tmp_path / '1.jpg', exif=exif)
    assert shown_size(tmp_path / '1.jpg') == (20, 40)
