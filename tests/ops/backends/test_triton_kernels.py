"""The Triton kernels against the equations in float64: on a GPU, or through Triton's interpreter.

Without a GPU they run where ``TRITON_INTERPRET=1`` is set before Python starts:
``test_triton_op.py`` starts such a process.
"""

import os

import pytest
import torch
from ops_cases import assert_all_close
from torch import nn

from coc_mm.models.layers import ContextClusterMixer
from coc_mm.ops import can_run_triton, context_cluster, context_cluster_packed
from coc_mm.ops.backends import reference
from coc_mm.ops.regions import region_layout

INTERPRETED = os.environ.get('TRITON_INTERPRET', '0') == '1'
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip('neither a GPU nor TRITON_INTERPRET=1', allow_module_level=True)
DEVICE = 'cpu' if INTERPRETED else 'cuda'
NAMES = ('output', 'grad of projected', 'grad of alpha', 'grad of beta')

if INTERPRETED:
    from triton.runtime.interpreter import InterpretedFunction

    _call = InterpretedFunction.__call__

    def _call_within(self, *args, **kwargs):
        # Each call of a device function prepares Triton's language anew, a third of the time:
        # those of our kernels run where it is prepared.
        if self.fn.__module__.startswith('coc_mm.'):
            return self.rewrite()(*args, **kwargs)
        return _call(self, *args, **kwargs)

    InterpretedFunction.__call__ = _call_within


@pytest.fixture(autouse=True)
def _nan_in_new_memory():
    """``torch.empty`` gives NaN: what a kernel leaves out is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def inputs(size, heads, channels, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    projected = torch.randn(1, *size, 2, heads, channels, generator=generator).to(dtype)
    grad = torch.randn(1, *size, heads, channels, generator=generator).to(dtype)
    scalars = torch.tensor([1.7]), torch.tensor([-0.3])
    return [t.to(DEVICE) for t in (projected, *scalars)], grad.to(DEVICE)


def run(tensors, grad, *setting, backend):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = context_cluster_packed(*tensors, *setting, backend=backend)
    out.backward(grad)
    return [out.detach(), *(t.grad for t in tensors)]


def nearest_gap(projected, alpha, beta, proposals, folds):
    """Return by how much the best center of any point beats the second, float64."""
    x = projected.double().unbind(-3)[0]
    layout = region_layout(x, proposals, folds)
    s = reference.similarity(layout.split(x), alpha.double(), beta.double(), layout)
    if s.shape[-2] == 1:
        return 1.0
    best = s.topk(2, -2).values
    return (best[..., 0, :] - best[..., 1, :]).min().item()


def check(size, heads, channels, proposals, folds=(1, 1), dtype=torch.float32, denominator=None):
    """Hold the output and every gradient to ``|out - ref| <= 2 |out_pt - ref|``, the maxima."""
    tensors, grad = inputs(size, heads, channels, dtype)
    setting = (proposals, folds, denominator or 'similarity')
    # A point between two centers may join either: none of these is.
    assert nearest_gap(*tensors, proposals, folds) > 1e-5
    actual = run(tensors, grad, *setting, backend='triton')
    same = run(tensors, grad, *setting, backend='fused')
    exact = run([t.double() for t in tensors], grad.double(), *setting, backend='reference')

    # Triton's interpreter cuts bfloat16 off where a GPU rounds: up to twice the error.
    factor = 2.5 if INTERPRETED and dtype == torch.bfloat16 else 2
    # Products of 16-bit points are exact to 2^-17 or better, not to float32's 2^-24; what is
    # summed for alpha and beta is of the order of the output times its gradient.
    unit = 2**-16 if dtype == torch.bfloat16 else 2**-20
    terms = (exact[0] * grad).abs().sum().item()
    spans = [max(1, t.abs().max().item()) for t in exact[:2]] + 2 * [terms]
    tiny = [2**-21 * spans[0], 2**-21 * spans[1], unit * terms, unit * terms]
    for name, out, pt, ref, more in zip(NAMES, actual, same, exact, tiny, strict=True):
        assert out.dtype == pt.dtype
        assert out.shape == ref.shape
        error, allowed = ((t.double() - ref).abs().max().item() for t in (out, pt))
        assert error <= factor * allowed + more, f'{name}: {error} against {allowed}'
    return actual


CASES = {
    'one center': ((7, 7), 1, 5, (1, 1)),
    'tiles': ((13, 9), 1, 24, (2, 2)),
    'heads': ((3, 5), 2, 3, (2, 2)),
    'one row': ((1, 12), 1, 32, (3, 3)),
    'one column': ((7, 1), 1, 8, (5, 5)),
    'one point': ((1, 1), 1, 5, (2, 2), (8, 8)),
    '25 centers': ((6, 7), 1, 5, (5, 5)),
    '49 centers': ((9, 8), 1, 24, (7, 7)),
    '64 centers': ((9, 8), 1, 64, (8, 8)),
    'folds': ((4, 6), 1, 8, (2, 1), (2, 2)),
    'ragged folds': ((5, 4), 1, 5, (2, 2), (2, 3)),
    'fewer points than folds and centers': ((3, 7), 1, 8, (2, 5), (4, 2)),
}


HALVES = [(case, d, None) for case in ('one center', '49 centers', 'ragged folds')
          for d in (torch.float16, torch.bfloat16)]  # fmt: skip
COUNTS = [(case, torch.float32, 'count') for case in ('tiles', 'ragged folds')]
FLOATS = [(case, torch.float32, None) for case in CASES]


@pytest.mark.parametrize(('case', 'dtype', 'denominator'), FLOATS + COUNTS + HALVES)
def test_equations(case, dtype, denominator):
    check(*CASES[case], dtype=dtype, denominator=denominator)


@pytest.mark.parametrize(
    'case',
    [
        ((7, 9), 1, 8, (3, 3), (1, 1), torch.float32, 'similarity'),
        ((7, 5), 1, 5, (2, 2), (1, 2), torch.float16, 'count'),
        ((5, 9), 1, 24, (2, 2), (1, 1), torch.bfloat16, 'similarity'),
    ],
)
def test_split_among_programs(case, monkeypatch):
    from coc_mm.ops.backends.triton_kernels import launch

    monkeypatch.setattr(launch, 'REGION_POINTS', 8)  # split small regions too
    monkeypatch.setattr(launch, 'MIN_SPLIT', 20)
    plans = []
    plan = launch.plan
    monkeypatch.setattr(launch, 'plan', lambda *a: plans.append(plan(*a)) or plans[-1])
    check(*case)
    assert [p.num_splits for p in plans] == 2 * [-(-plans[0].sizes[5] // 20)]
    assert plans[0].num_splits > 1


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_layouts_give_the_same_bits(dtype):
    """Two tensors or one, any strides, any alignment: equal results."""
    size, heads, channels, setting = (5, 6), 2, 5, ((2, 2), (1, 2), 'similarity')
    if not INTERPRETED:  # many warps
        size, heads, channels, setting = (56, 57), 4, 32, ((2, 2), (8, 8), 'similarity')
    (projected, alpha, beta), grad = inputs(size, heads, channels, dtype)
    expected = run([projected, alpha, beta], grad, *setting, backend='triton')
    strided = projected.permute(3, 5, 2, 0, 4, 1).contiguous().permute(3, 5, 2, 0, 4, 1)
    unaligned = torch.cat([projected.new_zeros(1), projected.flatten()])[1:].view_as(projected)
    assert not strided.is_contiguous()
    assert unaligned.data_ptr() % 16 != 0
    for layout in (projected, strided, unaligned):
        for packed in (True, False):
            leaf = layout.detach().requires_grad_()
            scalars = [t.clone().requires_grad_() for t in (alpha, beta)]
            function = context_cluster_packed if packed else context_cluster
            spaces = (leaf,) if packed else leaf.unbind(-3)
            out = function(*spaces, *scalars, *setting, backend='triton')
            turned = grad.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
            out.backward(turned if layout is strided else grad)
            results = [out, leaf.grad, *(t.grad for t in scalars)]
            for name, one, two in zip(NAMES, expected, results, strict=True):
                assert torch.equal(one, two), name


def test_empty_batch():
    (projected, alpha, beta), _ = inputs((5, 4), 1, 3)
    tensors = [t.requires_grad_() for t in (projected[:0], alpha, beta)]
    out = context_cluster_packed(*tensors, (2, 2), (2, 2), backend='triton')
    out.sum().backward()
    assert out.shape == (0, 5, 4, 1, 3)
    assert tensors[0].grad.shape == tensors[0].shape
    assert [t.grad.tolist() for t in tensors[1:]] == [[0], [0]]


def test_saturated_similarity_joins_the_first():
    projected = inputs((4, 4), 1, 3)[0][0]
    alpha, beta = (torch.tensor([t], device=DEVICE) for t in (0.1, 100.0))
    out = context_cluster_packed(projected, alpha, beta, backend='triton')
    values = projected.unbind(-3)[1]
    expected = (values.sum((1, 2)) + values[:, :2, :2].mean((1, 2))) / 17
    torch.testing.assert_close(out, expected[:, None, None].expand_as(out))


def test_zeros_are_finite_and_nan_stays_in_its_region():
    (projected, alpha, beta), _ = inputs((2, 6), 1, 3)
    zero = projected.mul(0).requires_grad_()
    out = context_cluster_packed(zero, alpha, beta, backend='triton')
    out.sum().backward()
    assert out.eq(0).all()
    assert zero.grad.isfinite().all()
    projected[:, 0, 0] = torch.nan
    out = context_cluster_packed(projected, alpha, beta, folds=(1, 2), backend='triton')
    assert out[:, 0, 0].isnan().all()
    assert out[:, :, 3:].isfinite().all()


def test_second_derivatives_are_refused():
    tensors, _ = inputs((3, 3), 1, 3)
    projected = tensors[0].requires_grad_()
    out = context_cluster_packed(*tensors, backend='triton')
    (grad,) = torch.autograd.grad(out.square().sum(), projected, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives: use backend='matmul'"):
        grad.sum().backward()


@pytest.mark.parametrize('packed', [True, False])
def test_registration(packed):
    (projected, alpha, beta), _ = inputs((3, 4), 1, 3)
    spaces = (projected, None) if packed else projected.unbind(-3)
    leaves = [None if t is None else t.clone().requires_grad_() for t in (*spaces, alpha, beta)]
    torch.library.opcheck(torch.ops.coc_mm.context_cluster, (*leaves, [2, 2], [2, 1], False, False))


def network(backend='triton'):
    torch.manual_seed(0)
    mixer = ContextClusterMixer(6, 1, 5, (2, 2), (1, 2), backend=backend)
    return nn.Sequential(mixer, nn.ReLU()).to(DEVICE), torch.randn(2, 3, 4, 6, device=DEVICE)


def test_compile():
    model, x = network()
    expected = model(x)
    grads = torch.autograd.grad(expected.sum(), list(model.parameters()))
    # Through the interpreter Inductor has no kernels of its own to compile for.
    compiled = torch.compile(
        model, fullgraph=True, backend='aot_eager' if INTERPRETED else 'inductor'
    )
    out = compiled(x)
    torch.testing.assert_close(out, expected)
    assert_all_close(torch.autograd.grad(out.sum(), list(model.parameters())), grads)


def test_export():
    model, x = network()
    model.eval()
    sizes = {0: torch.export.Dim('batch'), 1: torch.export.Dim('height', min=2)}
    program = torch.export.export(model, (x,), dynamic_shapes=(sizes,))
    names = [str(n.target) for n in program.graph.nodes]
    assert sum('coc_mm.context_cluster' in n for n in names) == 1
    for images in (x, torch.randn(1, 5, 4, 6, device=DEVICE)):
        torch.testing.assert_close(program.module()(images), model(images))


def test_mixed_precision():
    results = []
    for backend in ('triton', 'fused'):
        net, x = network(backend)
        with torch.autocast(DEVICE, torch.bfloat16):
            out = net[0](x)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
        results.append([out, *(p.grad for p in net.parameters())])
    assert_all_close(*results, rtol=0.03, atol=0.03)


@pytest.mark.skipif(INTERPRETED, reason='large maps need a GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ('size', 'heads', 'channels', 'proposals', 'folds'),
    [
        ((63, 61), 4, 24, (7, 7), (2, 2)),
        ((100, 168), 4, 32, (7, 7), (8, 8)),
        ((33, 17), 3, 64, (8, 8), (1, 1)),
        ((20, 20), 1, 128, (8, 8), (1, 1)),
        ((40, 40), 1, 32, (16, 16), (1, 1)),
    ],
)
def test_large_maps(size, heads, channels, proposals, folds, dtype):
    """Some of very many points lie between two centers: those places may differ."""
    tensors, grad = inputs(size, heads, channels, dtype)
    setting = (proposals, folds, 'similarity')
    actual = run(tensors, grad, *setting, backend='triton')
    again = run(tensors, grad, *setting, backend='triton')
    assert all(torch.equal(one, two) for one, two in zip(actual, again, strict=True))
    same = run(tensors, grad, *setting, backend='fused')
    exact = run([t.double() for t in tensors], grad.double(), *setting, backend='reference')
    for name, out, pt, ref in zip(NAMES[:2], actual, same, exact, strict=False):
        allowed = 2 * (pt.double() - ref).abs().flatten().quantile(1 - 1e-4)
        far = ((out.double() - ref).abs() > allowed + 2**-21 * ref.abs().max()).double().mean()
        assert far < 1e-3, f'{name}: {far:.2%} of the places are off'
    assert can_run_triton(tensors[0].unbind(-3)[0], proposals, folds)
