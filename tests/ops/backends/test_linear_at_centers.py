"""What compilers trace gives the same."""

import pytest
import torch
from ops_cases import CASES, assert_all_close, points, scalars

from coc_mm.ops import context_cluster


@pytest.mark.parametrize('denominator', ['similarity', 'count'])
@pytest.mark.parametrize('case', [CASES[0], CASES[6], CASES[7]])
def test_a_compiler_sees_the_same(case, denominator, monkeypatch):
    """While it traces, the operator takes a way of its own, without own gradients and caches."""
    inputs = [t.requires_grad_() for t in (*points(2, *case[:2], 2, 3), *scalars())]
    results = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, 'is_compiling', lambda c=compiling: c)
        out = context_cluster(*inputs, *case[2:], denominator)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    monkeypatch.undo()
    assert_all_close(*results)
