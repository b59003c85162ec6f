import pytest

from coc_mm.datasets import ClassFolders
from coc_mm.datasets.folder_datasets import hold_out


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


def test_a_dataset_without_images_is_refused(tmp_path):
    (tmp_path / 'a').mkdir()
    with pytest.raises(ValueError, match='holds no images'):
        ClassFolders(str(tmp_path), metainfo=dict(classes=['a']))


def test_copies_stay_on_one_side(tmp_path):
    """Augmented copies by name, the same bytes under other names, and what the user groups."""
    for k in range(10):
        for copy in 'ab':
            (tmp_path / f'{k}_jpg.rf.{copy}.jpg').write_text(f'{k}{copy}')
    (tmp_path / 'x.jpg').write_text('3a')
    names = sorted(path.name for path in tmp_path.iterdir())
    train, val = (set(hold_out(names, part, root=tmp_path)) for part in ('train', 'val'))
    assert len(train | val) == 21
    assert not {name[0] for name in train} & {name[0] for name in val}
    assert ('x.jpg' in val) == ('3_jpg.rf.a.jpg' in val)
    for fold in ('1/3', '3/3'):
        held = hold_out(['a_1', 'a_2', 'b_1', 'c_1'], 'val', fold=fold, group_by='_')
        assert len({name[0] for name in held}) == 1
