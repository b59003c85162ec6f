"""What compilers trace gives the same."""

import pytest
import torch

from coc_mm.ops import context_cluster


def points(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, dtype=dtype, generator=generator) for _ in range(2))


def scalars(alpha=-1.3, beta=0.4, dtype=torch.float64):
    return torch.tensor([alpha], dtype=dtype), torch.tensor([beta], dtype=dtype)


# height, width, proposals, folds: even and uneven regions, overlapping windows,
# regions smaller than their proposals, axes shorter than their folds.
CASES = [
    (4, 4, (2, 2), (2, 2)),
    (6, 9, (2, 3), (1, 1)),
    (5, 7, (2, 2), (1, 1)),
    (8, 4, (3, 2), (2, 1)),
    (4, 6, (1, 1), (2, 3)),
    (7, 5, (2, 2), (2, 2)),
    (9, 11, (3, 2), (4, 3)),
    (2, 3, (5, 4), (1, 1)),
    (7, 3, (2, 2), (4, 2)),
    (1, 1, (2, 2), (8, 8)),
    (3, 10, (7, 7), (8, 4)),
    (1, 12, (2, 5), (2, 1)),
    (7, 6, (2, 2), (2, 2)),
    (6, 7, (2, 2), (2, 2)),
]


@pytest.mark.parametrize('denominator', ['similarity', 'count'])
@pytest.mark.parametrize('case', [CASES[0], CASES[6], CASES[7]])
def test_a_compiler_sees_the_same(case, denominator, monkeypatch):
    """While it traces, the operator takes a way of its own, without own gradients and caches."""
    height, width, proposals, folds = case
    inputs = [t.requires_grad_() for t in (*points(2, height, width, 2, 3), *scalars())]
    results = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, 'is_compiling', lambda c=compiling: c)
        out = context_cluster(*inputs, proposals, folds, denominator, backend='fused')
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    monkeypatch.undo()
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
