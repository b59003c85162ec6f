"""Regions of an axis and of a map, written out by hand."""

from itertools import product

import pytest
import torch

from coc_mm.ops import regions

CPU = torch.device('cpu')


def divide(length, folds, proposals, dtype=torch.float64):
    return regions.build_axis(length, folds, proposals, CPU, dtype)


def test_even_regions():
    axis = divide(6, 2, 3, torch.float32)
    assert (axis.length, axis.folds, axis.size) == (6, 2, 3)
    # Nothing is padded and no center repeats: nothing has to be looked up.
    assert (axis.index, axis.inverse, axis.valid, axis.center_mask) == (None,) * 4
    assert axis.pool.dtype == torch.float32
    assert torch.equal(axis.pool, torch.eye(3).expand(2, 3, 3))


def test_uneven_regions():
    """Seven points in three regions of two, two and three; two centers each."""
    axis = divide(7, 3, 2)
    assert (axis.length, axis.folds, axis.size) == (7, 3, 3)
    assert axis.index.tolist() == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert axis.inverse.tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert axis.valid.tolist() == [[True, True, False], [True, True, False], [True] * 3]
    small, large = [[1, 0, 0], [0, 1, 0]], [[0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert axis.pool.tolist() == [small, small, large]
    assert axis.center_mask is None
    assert axis.index.dtype == axis.inverse.dtype == torch.int64


@pytest.mark.parametrize(
    ('setting', 'unique'),
    [
        ((3, 2, 3), [[True, False, False], [True, True, True]]),
        ((1, 1, 2), [[True, False]]),
        ((2, 5, 2), [[True, False], [True, False]]),
        ((2, 1, 5), [[True, False, True, True, False]]),
        ((2, 5, 1), None),
        ((9, 4, 2), None),
    ],
)
def test_centers_that_repeat_one(setting, unique):
    axis = divide(*setting)
    assert axis.folds == min(setting[0], setting[1])
    assert (axis.center_mask if axis.center_mask is None else axis.center_mask.tolist()) == unique
    torch.testing.assert_close(axis.pool.sum(-1), torch.ones_like(axis.pool[..., 0]))


def test_masks_of_both_axes():
    """Rows first; an axis without a mask of its own takes all."""
    short, long = divide(3, 2, 3), divide(2, 1, 2)
    layout, turned = regions.RegionLayout(short, long), regions.RegionLayout(long, short)
    assert layout.valid.tolist() == [[True, True, False, False], [True] * 4]
    assert turned.valid.tolist() == [[True, False, True, False], [True] * 4]
    assert layout.center_mask.tolist() == [[True] * 2 + [False] * 4, [True] * 6]
    assert turned.center_mask.tolist() == [[True, False, False] * 2, [True] * 6]
    assert regions.RegionLayout(short, short).center_mask.sum().item() == 1 + 3 + 3 + 9
    even = regions.RegionLayout(long, long)
    assert even.valid is even.center_mask is None
    assert (even.pool.shape, layout.pool.shape) == ((1, 4, 4), (2, 6, 4))
    torch.testing.assert_close(layout.pool.sum(-1), torch.ones(2, 6, dtype=torch.float64))


def test_a_layout_is_built_once():
    def layout(*size, dtype=torch.float64, **settings):
        settings = dict(proposals=(2, 2), folds=(3, 2)) | settings
        return regions.region_layout(torch.empty(1, *size, dtype=dtype), **settings)

    assert layout(7, 5) is layout(7, 5) is layout(7, 5, 4)
    assert layout(7, 5, dtype=torch.float16) is layout(7, 5, dtype=torch.float32)
    others = [layout(7, 5, dtype=torch.float32), layout(7, 6), layout(7, 5, folds=(3, 3))]
    assert all(other is not layout(7, 5) for other in [*others, layout(7, 5, proposals=(1, 2))])
    assert others[0].pool.dtype == torch.float32


def test_maps_there_and_back():
    x = torch.arange(2 * 5 * 7 * 2 * 3).reshape(2, 5, 7, 2, 3)
    for rows, cols in [(divide(5, 2, 1), divide(7, 7, 1)), (divide(5, 5, 1), divide(7, 3, 2))]:
        layout = regions.RegionLayout(rows, cols)
        parts = layout.split(x)
        assert parts.shape == (2, rows.folds * cols.folds, 2, rows.size * cols.size, 3)
        assert torch.equal(layout.merge(parts), x)
        assert torch.equal(layout.split(x[:, :, :, 1]), parts[:, :, 1])
        assert torch.equal(layout.merge(parts[:, :, 1]), x[:, :, :, 1])
        assert torch.equal(layout.unpad(layout.pad(x)), x)
    layout = regions.RegionLayout(divide(4, 2, 1), divide(4, 2, 1))
    x = torch.arange(16).reshape(1, 4, 4, 1, 1)
    assert layout.pad(x) is layout.unpad(x) is x
    assert layout.split(x)[0, 1, 0, :, 0].tolist() == [2, 3, 6, 7]


def test_every_place_holds_a_point_of_the_axis():
    assert divide(5, 4, 1).index.tolist() == [0, 1, 1, 2, 2, 3, 3, 4]  # padding repeats one
    for length, folds in product(range(1, 40), range(1, 12)):
        axis = divide(length, folds, 2)
        index = torch.arange(length) if axis.index is None else axis.index
        assert sorted(set(index.tolist())) == list(range(length))
        assert axis.folds == min(folds, length)
        assert len(index) == axis.folds * axis.size
