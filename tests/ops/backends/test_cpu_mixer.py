"""The halves of a block in pieces against the same in one, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from coc_mm.ops import context_cluster_packed
from coc_mm.ops.backends import cpu_mixer as mixer
from coc_mm.ops.backends.cpu_mixer import MixerSettings, MixerWeights, residual_mixer

# Images, height, width, channels, heads, head channels, proposals, folds
MAPS = [
    (2, 6, 8, 5, 2, 3, (2, 2), (3, 2)),
    (2, 6, 8, 5, 2, 3, (2, 2), (1, 1)),
    (1, 7, 5, 6, 3, 4, (2, 3), (2, 2)),
    (2, 7, 7, 5, 2, 3, (2, 2), (4, 4)),
    (2, 6, 6, 5, 1, 3, (3, 3), (3, 3)),
    (1, 5, 9, 5, 1, 3, (1, 1), (1, 1)),
    (3, 6, 9, 5, 2, 3, (2, 2), (1, 4)),
    (3, 9, 6, 5, 2, 3, (2, 2), (4, 1)),
    (3, 1, 9, 5, 2, 3, (2, 2), (4, 4)),
]


PIECES = [1 << 23, 2000]  # everything at once, and next to nothing


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def agree(ours, theirs, inputs, names):
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    above = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, inputs, above)
    other = torch.autograd.grad(theirs, inputs, above)
    for name, a, b in zip(names, mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f'{n}: {m}')


def by_modules(x, w, settings):
    """The same, one operation after the other."""
    y = F.group_norm(x.permute(0, 3, 1, 2), 1, w.norm_weight, w.norm_bias, settings.eps)
    y = F.linear(y.permute(0, 2, 3, 1), w.in_weight, w.in_bias)
    y = y.unflatten(-1, (2, settings.heads, -1))
    out = context_cluster_packed(y, w.alpha, w.beta, *settings[1:4], 'reference').flatten(-2)
    out = F.linear(out, w.out_weight, w.out_bias)
    return x + out if settings.residual else out


@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('piece', PIECES)
@pytest.mark.parametrize('denominator', ['similarity', 'count'])
@pytest.mark.parametrize('case', MAPS)
def test_mixer(case, denominator, piece, residual, monkeypatch):
    monkeypatch.setattr(mixer, 'TILE_BYTES', piece)
    b, h, w, c, e, d, proposals, folds = case
    inner = e * d
    inputs = tensors(
        *((b, h, w, c), (c,), (c,), (2 * inner, c), (2 * inner,), (c, inner), (c,), (1,), (1,))
    )
    weights = MixerWeights(*inputs[1:])
    settings = MixerSettings(e, proposals, folds, denominator, 1e-5, residual)
    ours = residual_mixer(inputs[0], weights, settings)
    theirs = by_modules(inputs[0], weights, settings)
    agree(ours, theirs, inputs, ('x', *MixerWeights._fields))


def test_operators_keep_the_rules_of_the_dispatcher():
    b, h, w, c, e, d = 2, 3, 5, 4, 2, 3
    inner = e * d
    x, *weights = (
        t.detach()
        for t in tensors(
            *((b, h, w, c), (c,), (c,), (2 * inner, c), (2 * inner,), (c, inner), (c,), (1,), (1,))
        )
    )
    checks = ('test_schema', 'test_faketensor')
    arguments = (x, weights, e, [2, 2], [2, 1], 'similarity', 1e-5, True)
    torch.library.opcheck(torch.ops.coc_mm.residual_mixer, arguments, test_utils=checks)
    mlp_weights = [t.detach() for t in tensors((c,), (c,), (8, c), (8,), (c, 8), (c,))]
    arguments = (x, mlp_weights, 1e-5, False)
    torch.library.opcheck(torch.ops.coc_mm.residual_mlp, arguments, test_utils=checks)
