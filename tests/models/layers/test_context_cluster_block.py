"""When a block runs in tiles, and that it gives the same as its modules."""

import pytest
import torch

from coc_mm.models.layers import ContextClusterBlock
from coc_mm.ops.backends.cpu_mixer import residual_mixer
from coc_mm.ops.backends.cpu_mlp import residual_mlp


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
