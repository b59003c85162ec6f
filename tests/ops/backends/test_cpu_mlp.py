"""The MLP in tiles against its modules."""

import pytest
import torch
from ops_cases import PIECES, assert_same_gradients, block, leaves

from coc_mm.ops.backends import cpu_mlp as mlp
from coc_mm.ops.backends.cpu_mlp import MLPWeights, residual_mlp


@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('piece', [1 << 23, 8 * 24 * 5 * 2, 8 * 24 * 40])
@pytest.mark.parametrize('shape', [(2, 5, 7, 6), (3, 4, 4, 6)])
def test_mlp(shape, piece, residual, monkeypatch):
    monkeypatch.setattr(mlp, 'TILE_BYTES', piece)
    x, *rest = inputs = leaves(shape, (6,), (6,), (24, 6), (24,), (6, 24), (6,))
    args = x, MLPWeights(*rest), 1e-5, residual
    assert_same_gradients(residual_mlp(*args), mlp._whole(*args), inputs)


@pytest.mark.parametrize('piece', PIECES)
def test_without_gradients_nothing_is_kept_and_nothing_given_is_written(piece, monkeypatch):
    monkeypatch.setattr(mlp, 'TILE_BYTES', piece)
    module, x = block(), torch.randn(2, 8, 9, 8, dtype=torch.float64)
    before, kept = x.clone(), []
    forward = mlp._forward
    monkeypatch.setattr(mlp, '_forward', lambda *a, **k: kept.append(forward(*a, **k)) or kept[-1])
    with_gradient = module(x)
    assert kept[-1][-1] is not None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = module(x)
        assert kept[-1][-1] is None
        torch.testing.assert_close(out, with_gradient, rtol=1e-12, atol=1e-12)
    frozen = block().requires_grad_(False)
    assert torch.equal(frozen(x), out)
    assert torch.equal(x, before)
    # What inference left behind serves a training step as well.
    module(x).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_an_input_that_may_be_replaced_is():
    x, *rest = leaves((2, 4, 5, 6), (6,), (6,), (24, 6), (24,), (6, 24), (6,))
    args = (MLPWeights(*rest), 1e-5)
    with torch.no_grad():
        expected = residual_mlp(x, *args)
        given = x.clone()
        out = residual_mlp(given, *args, inplace=True)
    assert out.data_ptr() == given.data_ptr()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert residual_mlp(x, *args, inplace=True).data_ptr() != x.data_ptr()
