"""The cut of an axis, written out by hand."""

from itertools import product

import pytest
import torch

from coc_mm.ops import regions

CPU = torch.device('cpu')


def cut(length, folds, proposals, dtype=torch.float64):
    return regions.axis(length, folds, proposals, CPU, dtype)


def test_even_cut():
    axis = cut(6, 2, 3, torch.float32)
    assert (axis.length, axis.folds, axis.size) == (6, 2, 3)
    # Nothing is padded and no center repeats: nothing has to be looked up.
    assert (axis.index, axis.inverse, axis.valid, axis.unique) == (None,) * 4
    assert axis.pool.dtype == torch.float32
    assert torch.equal(axis.pool, torch.eye(3).expand(2, 3, 3))


def test_uneven_cut():
    """Seven points in three regions of two, two and three; two centers each."""
    axis = cut(7, 3, 2)
    assert (axis.length, axis.folds, axis.size) == (7, 3, 3)
    assert axis.index.tolist() == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert axis.inverse.tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert axis.valid.tolist() == [[True, True, False], [True, True, False], [True] * 3]
    small, large = [[1, 0, 0], [0, 1, 0]], [[0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert axis.pool.tolist() == [small, small, large]
    assert axis.unique is None
    assert axis.index.dtype == axis.inverse.dtype == torch.int64


def test_padding_repeats_a_point_of_the_axis():
    # The last region is never the shortest, so only folds near the length reach its end.
    axis = cut(5, 4, 1)
    assert axis.valid.tolist() == [[True, False]] * 3 + [[True, True]]
    assert axis.index.tolist() == [0, 1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize(
    ('setting', 'unique'),
    [
        ((3, 2, 3), [[True, False, False], [True, True, True]]),
        ((1, 1, 2), [[True, False]]),
        ((2, 5, 2), [[True, False], [True, False]]),
        ((2, 1, 5), [[True, False, True, True, False]]),
        ((2, 5, 1), None),
        ((4, 1, 4), None),
        ((9, 4, 2), None),
    ],
)
def test_centers_that_repeat_one(setting, unique):
    axis = cut(*setting)
    assert axis.folds == min(setting[0], setting[1])
    assert (axis.unique if axis.unique is None else axis.unique.tolist()) == unique
    torch.testing.assert_close(axis.pool.sum(-1), torch.ones_like(axis.pool[..., 0]))


def test_masks_of_both_axes():
    """Rows first; an axis without a mask of its own takes all."""
    rows, cols = cut(3, 2, 3), cut(2, 1, 2)
    assert regions.valid_points(rows, cols).tolist() == [
        [True, True, False, False],
        [True, True, True, True],
    ]
    assert regions.valid_points(cols, rows).tolist() == [
        [True, False, True, False],
        [True, True, True, True],
    ]
    assert regions.unique_centers(rows, cols).tolist() == [[True] * 2 + [False] * 4, [True] * 6]
    assert regions.unique_centers(cols, rows).tolist() == [[True, False, False] * 2, [True] * 6]
    assert regions.unique_centers(rows, rows).sum().item() == 1 + 3 + 3 + 9
    assert regions.valid_points(cols, cols) is regions.unique_centers(cols, cols) is None


def test_an_axis_is_computed_once():
    assert cut(7, 3, 2) is cut(7, 3, 2)
    others = [cut(7, 3, 2, torch.float32), cut(7, 3, 1), cut(7, 2, 2), cut(8, 3, 2)]
    assert all(other is not cut(7, 3, 2) for other in others)
    assert cut(7, 3, 2, torch.float32).pool.dtype == torch.float32


def test_maps_there_and_back():
    x = torch.arange(2 * 5 * 7 * 2 * 3).reshape(2, 5, 7, 2, 3)
    visited = 0
    for rows, cols in [(cut(5, 2, 1), cut(7, 7, 1)), (cut(5, 5, 1), cut(7, 3, 2))]:
        padded = regions.pad(x, rows, cols)
        parts = regions.split(padded, rows, cols)
        assert parts.shape == (2, rows.folds * cols.folds, 2, rows.size * cols.size, 3)
        assert torch.equal(regions.merge(parts, rows, cols), padded)
        assert torch.equal(regions.unpad(padded, rows, cols), x)
        visited += 1
    assert visited == 2
    rows = cols = cut(4, 2, 1)
    x = torch.arange(16).reshape(1, 4, 4, 1, 1)
    assert regions.pad(x, rows, cols) is regions.unpad(x, rows, cols) is x
    assert regions.split(x, rows, cols)[0, 1, 0, :, 0].tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize('compiling', [False, True])
@pytest.mark.parametrize('setting', [(6, 2, 3), (7, 3, 3), (3, 2, 4)])
def test_tables_live_where_they_are_wanted(setting, compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: compiling)
    axis = regions.axis(*setting, torch.device('meta'), torch.float32)
    tables = [entry for entry in axis if isinstance(entry, torch.Tensor)]
    assert {table.device.type for table in tables} == {'meta'}
    assert len(tables) == sum(isinstance(entry, torch.Tensor) for entry in cut(*setting))


def test_every_place_holds_a_point_of_the_axis():
    for length, folds in product(range(1, 40), range(1, 12)):
        axis = cut(length, folds, 2)
        index = torch.arange(length) if axis.index is None else axis.index
        assert sorted(set(index.tolist())) == list(range(length))
        assert axis.folds == min(folds, length)
        assert len(index) == axis.folds * axis.size
