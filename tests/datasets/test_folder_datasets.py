import pytest

from coc_mm.datasets.folder_datasets import hold_out


@pytest.mark.parametrize(('count', 'held'), [(1, 0), (2, 1), (3, 1), (5, 1), (10, 2), (101, 20)])
def test_hold_out(count, held):
    names = [str(i) for i in range(count)]
    train, val = (hold_out(names, part, 0.2) for part in ('train', 'val'))
    assert len(val) == held
    assert sorted(train + val) == sorted(names)


@pytest.mark.parametrize('fraction', [0, 1])
def test_hold_out_refuses(fraction):
    with pytest.raises(ValueError, match='must be'):
        hold_out(['a', 'b'], 'val', fraction)


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
