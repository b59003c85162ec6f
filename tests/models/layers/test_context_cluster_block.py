"""When a block runs in tiles, and that it gives the same as its modules."""

import pytest
import torch
from ops_cases import assert_all_close, assert_same_gradients, block, record_calls


@pytest.mark.parametrize('options', [{}, dict(drop_path_rate=0.5), dict(denominator='count')])
def test_block_equals_its_modules(options):
    module = block(**options)
    x = torch.randn(4, 8, 11, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for backend in ('fused', 'reference'):  # in tiles and by the equations
        module.mixer.backend = backend
        torch.manual_seed(1)
        out = module(x)
        grads = torch.autograd.grad(out.mean(), [x, *module.parameters()], create_graph=True)
        second = torch.autograd.grad(grads[0].square().sum(), x)
        found.append((out, *grads, *second))
    assert_all_close(*found, rtol=1e-8, atol=1e-8)


@pytest.fixture
def calls(monkeypatch):
    return record_calls(monkeypatch, 'residual_mixer', 'residual_mlp')


def test_runs_in_tiles_unless_somebody_looks_inside(calls):
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
    module(x[:, :6, :6])  # regions of nine points, and four centers: too small for the mixer
    assert calls[5:] == ['residual_mlp']


def test_reference_backend_and_dropout_go_module_by_module(calls, monkeypatch):
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
    parameters = {p.data_ptr() for p in module.parameters()}
    sizes, kept = [], []
    for backend in ('fused', 'reference'):
        kept.clear()
        module.mixer.backend = backend
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            module(x)
        large = {t.data_ptr(): t.numel() for t in kept if t.data_ptr() not in parameters}
        sizes.append(sum(size for size in large.values() if size >= x.numel()) / x.numel())
    assert sizes[0] <= 7 < 14 < sizes[1]


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
    assert_same_gradients(out, eager, [x, *module.parameters()])
