"""The halves of a block in tiles against the whole map at once, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from ops_cases import PIECES, assert_same_gradients, leaves

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
    (3, 1, 9, 5, 2, 3, (2, 2), (4, 4)),
]


def inputs_of(shape, heads, head_dim):
    c, inner = shape[-1], heads * head_dim
    return leaves(shape, (c,), (c,), (2 * inner, c), (2 * inner,), (c, inner), (c,), (1,), (1,))


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
    inputs = inputs_of(case[:4], *case[4:6])
    x, weights = inputs[0], MixerWeights(*inputs[1:])
    settings = MixerSettings(case[4], *case[6:], denominator, 1e-5, residual)
    ours, theirs = (run(x, weights, settings) for run in (residual_mixer, by_modules))
    assert_same_gradients(ours, theirs, inputs)


def test_operators_keep_the_rules_of_the_dispatcher():
    x, *weights = (t.detach() for t in inputs_of((2, 3, 5, 4), 2, 3))
    checks = ('test_schema', 'test_faketensor')
    arguments = (x, weights, 2, [2, 2], [2, 1], 'similarity', 1e-5, True)
    torch.library.opcheck(torch.ops.coc_mm.residual_mixer, arguments, test_utils=checks)
    mlp_weights = [t.detach() for t in leaves((4,), (4,), (8, 4), (8,), (4, 8), (4,))]
    arguments = (x, mlp_weights, 1e-5, False)
    torch.library.opcheck(torch.ops.coc_mm.residual_mlp, arguments, test_utils=checks)
