"""What tests of the operator share: inputs, settings, comparisons."""

import torch

from coc_mm.models.layers import ContextClusterBlock, context_cluster_block
from coc_mm.ops.functional import _BACKENDS

# 'triton' does not take float64, which most tests use: see test_triton_kernels.py.
BACKENDS = sorted(set(_BACKENDS) - {'triton', 'fused'})
PIECES = [1 << 23, 2000]  # bytes of a tile: everything at once, and next to nothing

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


def points(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, dtype=dtype, generator=generator) for _ in range(2))


def scalars(alpha=-1.3, beta=0.4, dtype=torch.float64):
    return torch.tensor([alpha], dtype=dtype), torch.tensor([beta], dtype=dtype)


def leaves(*shapes):
    generator = torch.Generator().manual_seed(0)
    new = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [t.requires_grad_() for t in new]


def assert_all_close(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def assert_same_gradients(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    above = torch.randn_like(ours)
    grads = (torch.autograd.grad(out, inputs, above) for out in (ours, theirs))
    assert_all_close(*grads, rtol=1e-9, atol=1e-10)


def block(**options):
    torch.manual_seed(0)
    options = dict(folds=(2, 2), layer_scale_init_value=0.5) | options
    module = ContextClusterBlock(8, 2, 4, 4, **options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def record_calls(monkeypatch, *names):
    """List the calls of functions that blocks use, by name."""
    calls = []
    for name in names:
        found = getattr(context_cluster_block, name)
        monkeypatch.setattr(
            *(context_cluster_block, name),
            lambda *a, f=found, n=name, **k: calls.append(n) or f(*a, **k),
        )
    return calls
