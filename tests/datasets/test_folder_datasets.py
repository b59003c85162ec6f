import pytest

from coc_mm.datasets import ClassFolders
from coc_mm.datasets.folder_datasets import hold_out, split_folder


@pytest.mark.parametrize(('count', 'held'), [(1, 0), (2, 1), (3, 1), (5, 1), (10, 2), (101, 20)])
def test_hold_out(count, held):
    names = [str(i) for i in range(count)]
    train, val = (hold_out(names, part, 0.2) for part in ('train', 'val'))
    assert len(val) == held
    assert sorted(train + val) == sorted(names)
    assert hold_out(names, 'all', 0.2) == names


@pytest.mark.parametrize(('part', 'fraction'), [('test', 0.2), ('val', 0), ('val', 1)])
def test_hold_out_refuses(part, fraction):
    with pytest.raises(ValueError, match='must be'):
        hold_out(['a', 'b'], part, fraction)


def test_split_folders_have_any_case(tmp_path):
    assert split_folder(tmp_path / 'nowhere', 'val') is None
    for name in ('Testing', 'VALID', 'other'):
        (tmp_path / name).mkdir()
    assert split_folder(tmp_path, 'val') == tmp_path / 'VALID'
    assert split_folder(tmp_path, 'train') is None


def test_a_dataset_without_images_is_refused(tmp_path):
    (tmp_path / 'a').mkdir()
    with pytest.raises(ValueError, match='holds no images'):
        ClassFolders(str(tmp_path), metainfo=dict(classes=['a']))
