"""The operator against a loop over points, and its backends against each other."""

from copy import copy

import pytest
import torch

from coc_mm.ops import assign_points, context_cluster, regions
from coc_mm.ops.backends import matmul, reference
from coc_mm.ops.functional import _BACKENDS

# 'triton' does not take float64, which most tests use: see test_triton.py.
BACKENDS = sorted(set(_BACKENDS) - {'triton', 'fused'})


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


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('denominator', ['similarity', 'count'])
@pytest.mark.parametrize('case', [CASES[0], CASES[2], CASES[5], CASES[7], CASES[10]])
def test_gradcheck(case, denominator, backend):
    height, width, proposals, folds = case
    features, values = points(1, height, width, 2, 3)
    inputs = [t.requires_grad_() for t in (features, values, *scalars())]
    assert torch.autograd.gradcheck(
        lambda *t: context_cluster(*t, proposals, folds, denominator, backend=backend), inputs
    )


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('denominator', ['similarity', 'count'])
@pytest.mark.parametrize('size', [(3, 4), (2, 3)])  # even, and padded with centers that repeat
def test_double_backward(size, denominator, backend):
    features, values = points(1, *size, 1, 2)
    inputs = [t.requires_grad_() for t in (features, values, *scalars())]

    def run(*inputs):
        return context_cluster(*inputs, (2, 2), (1, 2), denominator, backend=backend)

    assert torch.autograd.gradgradcheck(run, inputs)
    # The check holds the second gradient against the first of the same graph, and no other.
    grad = points(1, *size, 1, 2, seed=1)[0]
    graph, plain = (
        torch.autograd.grad(run(*inputs), inputs, grad, create_graph=graph)
        for graph in (True, False)
    )
    for actual, expected in zip(graph, plain, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('wanted', [(0,), (1,), (2, 3), (0, 3), (1, 2)])
def test_double_backward_of_some_inputs(wanted, backend):
    inputs = [*points(1, 5, 4, 1, 2), *scalars()]
    for index in wanted:
        inputs[index].requires_grad_()

    def run(*some):
        given = dict(zip(wanted, some, strict=True))
        given = [given.get(index, t) for index, t in enumerate(inputs)]
        return context_cluster(*given, (2, 2), (1, 2), backend=backend)

    assert torch.autograd.gradgradcheck(run, [inputs[index] for index in wanted])


@pytest.mark.parametrize('case', [(56, 56, (2, 2), (8, 8)), (63, 15, (7, 7), (2, 2))])
def test_backends_agree_in_float32(case):
    height, width, proposals, folds = case
    features, values = points(2, height, width, 4, 24, dtype=torch.float32)
    grad = points(2, height, width, 4, 24, dtype=torch.float32, seed=1)[0]
    results = {}
    for backend in BACKENDS:
        inputs = [
            t.clone().requires_grad_()
            for t in (features, values, *scalars(alpha=2.0, dtype=torch.float32))
        ]
        out = context_cluster(*inputs, proposals, folds, backend=backend)
        out.backward(grad)
        results[backend] = [out.detach(), *(t.grad for t in inputs)]
    names = ('output', 'features', 'values', 'alpha', 'beta')
    assert len(results) >= 2
    for backend, tensors in results.items():
        for name, actual, expected in zip(names, tensors, results['reference'], strict=True):
            scale = expected.abs().max()
            # A point whose best two centers tie within rounding may join the other one.
            far = ((actual - expected).abs() > 1e-4 * scale).sum()
            assert far <= 4 * 24 * 4, f'{backend}: {name} differs in {far} places'


@pytest.mark.parametrize('size', [(4, 4), (5, 7)])
@pytest.mark.parametrize('how', ['first', 'second', 'compiled'])
def test_centers_left_out_are_joined_by_nobody(how, size, monkeypatch):
    """Not even by points that are most similar to them, in whatever pass."""
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: how == 'compiled')
    layout = copy(regions.region_layout(torch.empty(1, *size).double(), (2, 2), (2, 2)))
    # Even regions are all divided alike.
    layout.center_mask = torch.tensor([[False, True, True, True]] * 4)
    if size == (5, 7):
        layout.center_mask[0] = True
    inputs = [t.requires_grad_() for t in (*points(2, *size, 2, 3), *scalars())]
    results = []
    for forward in (matmul.forward, reference.forward):
        out = forward(*inputs, layout, 'similarity')
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=how == 'second')
        results.append([out, *grads])
    assert len(results[0]) == 5
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    layout.center_mask = None
    every = reference.forward(*inputs, layout, 'similarity')
    assert not torch.allclose(results[0][0], every)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(backend, dtype):
    """The clusters are those of float32: only the values are rounded."""
    features, values = (t.to(dtype) for t in points(2, 9, 8, 2, 16, dtype=torch.float32))
    alpha, beta = scalars(dtype=torch.float32)
    with torch.autocast('cpu', dtype=dtype):
        out = context_cluster(features, values, alpha, beta, (2, 2), (2, 2), backend=backend)
    expected = context_cluster(
        features.float(), values.float(), alpha, beta, (2, 2), (2, 2), backend=backend
    )
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('size', [(4, 4), (5, 7)])
def test_empty_batch(backend, size):
    features, values = (torch.zeros(0, *size, 2, 3, requires_grad=True) for _ in range(2))
    out = context_cluster(
        features, values, *scalars(dtype=torch.float32), (2, 2), (2, 2), backend=backend
    )
    out.sum().backward()
    assert out.shape == features.shape == features.grad.shape


@pytest.mark.parametrize('backend', BACKENDS)
def test_strides_do_not_matter(backend):
    features, values = points(2, 6, 8, 2, 4)
    expected = context_cluster(features, values, *scalars(), (2, 2), (2, 2), backend=backend)
    strided = torch.empty(2, 4, 8, 2, 2, 6, dtype=torch.float64).permute(3, 0, 5, 2, 4, 1)
    strided.copy_(torch.stack([features, values]))
    actual = context_cluster(*strided, *scalars(), (2, 2), (2, 2), backend=backend)
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('backend', BACKENDS)
def test_trains_after_inference_mode(backend):
    """What inference mode leaves in the caches serves training as well."""
    features, values = points(1, 11, 13, 1, 2)
    with torch.inference_mode():
        context_cluster(features, values, *scalars(), (3, 3), (2, 2), backend=backend)
    features.requires_grad_()
    context_cluster(features, values, *scalars(), (3, 3), (2, 2), backend=backend).sum().backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_float32_is_computed_as_such(backend):
    """Neither autocast nor the type of the two scalars changes the precision."""
    features, values = points(2, 5, 8, 2, 16, dtype=torch.float32)
    setting = (2, 2), (1, 2)
    exact = context_cluster(
        features.double(), values.double(), *scalars(), *setting, backend=backend
    )
    plain = context_cluster(
        features, values, *scalars(dtype=torch.float32), *setting, backend=backend
    )
    torch.testing.assert_close(plain.double(), exact, rtol=1e-4, atol=1e-5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.float64):
            given = [t.to(dtype) for t in scalars(dtype=torch.float32)]
            out = context_cluster(features, values, *given, *setting, backend=backend)
            assert torch.equal(out, plain)
            index, _, s = assign_points(features, *given, *setting)
            assert s.dtype == torch.float32
            assert torch.equal(index, assign_points(features.double(), *scalars(), *setting)[0])


@pytest.mark.parametrize('length', [0, 1e-13, 1e-11])
@pytest.mark.parametrize('denominator', ['similarity', 'count'])
def test_short_points_have_the_same_gradient(denominator, length):
    """Points about as short as what keeps their normalisation from dividing by zero."""
    features, values = points(1, 5, 6, 2, 3)
    features[0, 1, 2] *= length / features[0, 1, 2].norm(dim=-1, keepdim=True)
    features[0, 2:, 3:] *= length  # a center's whole window
    compare_gradients(features, values, (1, 2), denominator)


def test_points_of_just_the_least_length_have_the_same_gradient():
    features, values = points(1, 4, 4, 2, 3)
    features[0, :2, :2] = features.new_tensor([1e-12, 0, 0])  # a window whose average is exact
    compare_gradients(features, values, (1, 1), 'similarity')


def compare_gradients(features, values, folds, denominator):
    grads = {}
    for backend in BACKENDS:
        inputs = [t.clone().requires_grad_() for t in (features, values, *scalars())]
        out = context_cluster(*inputs, (2, 2), folds, denominator, backend=backend)
        out.backward(points(*features.shape, seed=1)[0])
        grads[backend] = [t.grad for t in inputs]
    assert len(grads) == 2
    for actual, expected in zip(grads['matmul'], grads['reference'], strict=True):
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
