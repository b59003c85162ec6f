"""The backends against each other, and their derivatives against finite differences."""

from copy import copy

import pytest
import torch
from ops_cases import BACKENDS, CASES, assert_all_close, points, scalars

from coc_mm.ops import assign_points, context_cluster, regions
from coc_mm.ops.backends import matmul, reference

every_backend = pytest.mark.parametrize('backend', BACKENDS)
both_denominators = pytest.mark.parametrize('denominator', ['similarity', 'count'])
HALVES = (2, 2), (2, 2)


@every_backend
@both_denominators
@pytest.mark.parametrize('case', [CASES[0], CASES[2], CASES[5], CASES[7], CASES[10]])
def test_gradcheck(case, denominator, backend):
    inputs = [t.requires_grad_() for t in (*points(1, *case[:2], 2, 3), *scalars())]
    assert torch.autograd.gradcheck(
        lambda *t: context_cluster(*t, *case[2:], denominator, backend=backend), inputs
    )


@every_backend
@both_denominators
@pytest.mark.parametrize('size', [(3, 4), (2, 3)])  # even, and padded with centers that repeat
def test_double_backward(size, denominator, backend):
    inputs = [t.requires_grad_() for t in (*points(1, *size, 1, 2), *scalars())]

    def run(*inputs):
        return context_cluster(*inputs, (2, 2), (1, 2), denominator, backend=backend)

    assert torch.autograd.gradgradcheck(run, inputs)
    # The check holds the second gradient against the first of the same graph, and no other.
    grad = points(1, *size, 1, 2, seed=1)[0]
    assert_all_close(
        torch.autograd.grad(run(*inputs), inputs, grad, create_graph=True),
        torch.autograd.grad(run(*inputs), inputs, grad),
    )


@pytest.mark.parametrize('wanted', [(0,), (2, 3), (0, 3)])
def test_double_backward_of_some_inputs(wanted):
    inputs = [*points(1, 5, 4, 1, 2), *scalars()]

    def run(*some):
        given = dict(enumerate(inputs)) | dict(zip(wanted, some, strict=True))
        return context_cluster(*given.values(), (2, 2), (1, 2), backend='matmul')

    assert torch.autograd.gradgradcheck(run, [inputs[i].requires_grad_() for i in wanted])


@pytest.mark.parametrize('size', [(4, 4), (5, 7)])
@pytest.mark.parametrize('how', ['first', 'second', 'compiled'])
def test_centers_left_out_are_joined_by_nobody(how, size, monkeypatch):
    """Not even by points that are most similar to them, in whatever pass."""
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: how == 'compiled')
    layout = copy(regions.region_layout(torch.empty(1, *size).double(), *HALVES))
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
    assert_all_close(*results)
    layout.center_mask = None
    every = reference.forward(*inputs, layout, 'similarity')
    assert not torch.allclose(results[0][0], every)


@every_backend
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(backend, dtype):
    """The clusters are those of float32: only the values are rounded."""
    inputs = [t.to(dtype) for t in points(2, 9, 8, 2, 16)]
    settings = (*scalars(dtype=torch.float32), *HALVES)
    with torch.autocast('cpu', dtype=dtype):
        out = context_cluster(*inputs, *settings, backend=backend)
    expected = context_cluster(*(t.float() for t in inputs), *settings, backend=backend)
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))


@every_backend
def test_float32_is_computed_as_such(backend):
    """Neither autocast nor the type of the two scalars changes the precision."""
    inputs, setting = points(2, 5, 8, 2, 16, dtype=torch.float32), ((2, 2), (1, 2))
    exact = context_cluster(*(t.double() for t in inputs), *scalars(), *setting, backend=backend)
    plain = context_cluster(*inputs, *scalars(dtype=torch.float32), *setting, backend=backend)
    torch.testing.assert_close(plain.double(), exact, rtol=1e-4, atol=1e-5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.float64):
            given = [t.to(dtype) for t in scalars(dtype=torch.float32)]
            assert torch.equal(context_cluster(*inputs, *given, *setting, backend=backend), plain)
            index, _, s = assign_points(inputs[0], *given, *setting)
            assert s.dtype == torch.float32
            assert torch.equal(index, assign_points(inputs[0].double(), *scalars(), *setting)[0])


@every_backend
@pytest.mark.parametrize('size', [(4, 4), (5, 7)])
def test_empty_batch(backend, size):
    inputs = [torch.zeros(0, *size, 2, 3, requires_grad=True) for _ in range(2)]
    out = context_cluster(*inputs, *scalars(dtype=torch.float32), *HALVES, backend=backend)
    out.sum().backward()
    assert out.shape == inputs[0].shape == inputs[0].grad.shape


@every_backend
def test_strides_do_not_matter(backend):
    spaces = points(2, 6, 8, 2, 4)
    strided = torch.empty(2, 4, 8, 2, 2, 6, dtype=torch.float64).permute(3, 0, 5, 2, 4, 1)
    strided.copy_(torch.stack(spaces))
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(
        *(context_cluster(*x, *scalars(), *HALVES, backend=backend) for x in (spaces, strided))
    )


@every_backend
def test_trains_after_inference_mode(backend):
    """What inference mode leaves in the caches serves training as well."""
    inputs, setting = (*points(1, 11, 13, 1, 2), *scalars()), ((3, 3), (2, 2))
    with torch.inference_mode():
        context_cluster(*inputs, *setting, backend=backend)
    inputs[0].requires_grad_()
    context_cluster(*inputs, *setting, backend=backend).sum().backward()
    assert inputs[0].grad.isfinite().all()


@pytest.mark.parametrize('length', [0, 1e-13, 1e-12, 1e-11])
@both_denominators
def test_short_points_have_the_same_gradient(denominator, length):
    """Points about as short as what keeps their normalisation from dividing by zero."""
    features, values = points(1, 5, 6, 2, 3)
    folds = (1, 2)
    if length == 1e-12:  # just the least length
        folds, features[0, :2, :2] = (1, 1), features.new_tensor([length, 0, 0])
    else:
        features[0, 1, 2] *= length / features[0, 1, 2].norm(dim=-1, keepdim=True)
        features[0, 2:, 3:] *= length  # a center's whole window
    grads = []
    for backend in ('matmul', 'reference'):
        inputs = [t.clone().requires_grad_() for t in (features, values, *scalars())]
        out = context_cluster(*inputs, (2, 2), folds, denominator, backend=backend)
        grads.append(torch.autograd.grad(out, inputs, points(*features.shape, seed=1)[0]))
    assert all(grad.isfinite().all() for grad in grads[0])
    assert_all_close(*grads, rtol=1e-6, atol=1e-9)
