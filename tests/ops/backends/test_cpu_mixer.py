"""The halves of a block in pieces against the same in one, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from coc_mm.models.layers import ContextClusterBlock
from coc_mm.ops import context_cluster_packed
from coc_mm.ops.backends import cpu_mixer as mixer
from coc_mm.ops.backends import cpu_mlp as mlp
from coc_mm.ops.backends.cpu_mixer import MixerSettings, MixerWeights, residual_mixer
from coc_mm.ops.backends.cpu_mlp import MLPWeights, residual_mlp

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


@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('piece', [1 << 23, 8 * 24 * 5 * 2, 8 * 24 * 40])
@pytest.mark.parametrize('shape', [(2, 5, 7, 6), (3, 4, 4, 6)])
def test_mlp(shape, piece, residual, monkeypatch):
    monkeypatch.setattr(mlp, 'TILE_BYTES', piece)
    c = shape[-1]
    inputs = tensors(shape, (c,), (c,), (24, c), (24,), (c, 24), (c,))
    x, *rest = inputs
    ours = residual_mlp(x, MLPWeights(*rest), 1e-5, residual)
    theirs = mlp._whole(x, MLPWeights(*rest), 1e-5, residual)
    agree(ours, theirs, inputs, ('x', 'norm', 'shift', 'fc1', 'bias1', 'fc2', 'bias2'))


def block(**options):
    torch.manual_seed(0)
    module = ContextClusterBlock(
        8, 2, 4, 4, folds=(2, 2), layer_scale_init_value=0.5, **options
    ).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def backends(module, x):
    """Output and gradients in pieces and by the textbook."""
    found = []
    for backend in ('fused', 'reference'):
        module.mixer.backend = backend
        torch.manual_seed(1)
        out = module(x)
        grads = torch.autograd.grad(out.square().sum(), list(module.parameters()))
        found.append((out, *grads))
    return found


@pytest.mark.parametrize('options', [{}, dict(drop_path_rate=0.5), dict(denominator='count')])
def test_block_equals_its_modules(options):
    module = block(**options)
    x = torch.randn(4, 8, 11, 8, dtype=torch.float64)
    for ours, theirs in zip(*backends(module, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_second_gradient():
    module = block()
    x = torch.randn(1, 8, 9, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for backend in ('fused', 'reference'):
        module.mixer.backend = backend
        (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


@pytest.fixture
def calls(monkeypatch):
    calls = []
    for ours in (residual_mixer, residual_mlp):
        name = ours.__name__
        path = f'coc_mm.models.layers.context_cluster_block.{name}'
        monkeypatch.setattr(path, lambda *a, f=ours, n=name, **k: calls.append(n) or f(*a, **k))
    return calls


def test_runs_in_pieces_unless_somebody_looks_inside(calls):
    module, x = block(), torch.randn(1, 8, 8, 8, dtype=torch.float64)
    module(x)
    assert calls == ['residual_mixer', 'residual_mlp']
    seen = []
    handle = module.mlp.fc1.register_forward_hook(lambda *a: seen.append(a))
    module(x)
    assert calls[2:] == ['residual_mixer']
    assert len(seen) == 1
    handle.remove()
    module(x)
    assert calls[3:] == ['residual_mixer', 'residual_mlp']


def test_small_regions_are_mixed_module_by_module(calls):
    block()(torch.randn(1, 6, 6, 8, dtype=torch.float64))  # nine points, four centers
    assert calls == ['residual_mlp']


def test_textbook_backend_and_dropout_go_module_by_module(calls, monkeypatch):
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    block(backend='reference')(x)
    module = block(drop_rate=0.1)
    module(x)
    assert not calls
    module.eval()(x)
    assert calls == ['residual_mixer', 'residual_mlp']
    monkeypatch.setenv('COC_MM_BACKEND', 'reference')
    block()(x)
    assert len(calls) == 2


def test_training_keeps_little():
    """What a block keeps for its backward pass: its input and the hidden features once."""
    module, x = block(), torch.randn(2, 8, 8, 8, dtype=torch.float64)
    kept = []

    def pack(t):
        kept.append(t)
        return t

    parameters = {p.data_ptr() for p in module.parameters()}
    for backend, most in (('fused', 7), ('reference', None)):
        kept.clear()
        module.mixer.backend = backend
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            module(x)
        large = {t.data_ptr(): t.numel() for t in kept if t.data_ptr() not in parameters}
        points = sum(size for size in large.values() if size >= x.numel())
        if most is None:
            assert points > 14 * x.numel()
        else:
            assert points <= most * x.numel()


@pytest.mark.parametrize(
    ('options', 'size'), [({}, (8, 10)), (dict(denominator='count'), (9, 11)), ({}, (2, 2))]
)
def test_compiled_with_and_without_gradients(options, size):
    torch.compiler.reset()
    module = block(**options)
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    eager = module(x)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), eager, rtol=1e-11, atol=1e-11)
    out = compiled(x)
    torch.testing.assert_close(out, eager, rtol=1e-11, atol=1e-11)
    inputs = [x, *module.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), inputs),
        torch.autograd.grad(eager.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


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
    x, *rest = tensors((2, 4, 5, 6), (6,), (6,), (24, 6), (24,), (6, 24), (6,))
    args = (MLPWeights(*rest), 1e-5)
    with torch.no_grad():
        expected = residual_mlp(x, *args)
        given = x.clone()
        out = residual_mlp(given, *args, inplace=True)
    assert out.data_ptr() == given.data_ptr()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    with_gradient = residual_mlp(x, *args, inplace=True)
    assert with_gradient.data_ptr() != x.data_ptr()
