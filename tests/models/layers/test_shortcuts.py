"""Shortcuts are taken where nobody can notice, and nowhere else."""

import copy
import warnings

import pytest
import torch
from ops_cases import assert_all_close, record_calls
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap
from torch.nn.modules import module as module_hooks
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from coc_mm.models import ContextCluster

ARCH = dict(dims=(8, 16, 16, 16), mlp_ratios=[2] * 4, heads=[2] * 4, head_dim=8)
ARCH.update(depths=[1] * 4, folds=(2, 2, 1, 1))
LEAVES = ('norm1', 'mixer.in_proj', 'mixer.out_proj', 'mixer.drop', 'drop_path')
LEAVES += ('norm2', 'mlp.fc1', 'mlp.act', 'mlp.fc2', 'mlp.drop')
LINEAR = ('mixer.in_proj', 'mixer.out_proj', 'mlp.fc1', 'mlp.fc2')


def build(arch=ARCH, scale=0.5, **kwargs):
    torch.manual_seed(0)
    return ContextCluster(arch, layer_scale_init_value=scale, **kwargs).eval()


def blocks(model):
    return [block for stage in model.blocks for block in stage]


def image(dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 64, 64, dtype=dtype, generator=generator)


@pytest.fixture
def taken(monkeypatch):
    """Which shortcuts blocks take: the tiled halves and folded layer scales."""
    return record_calls(monkeypatch, 'residual_mixer', 'residual_mlp', '_folded')


HOOKS = {
    'forward_hook': module_hooks.register_module_forward_hook,
    'forward_pre_hook': module_hooks.register_module_forward_pre_hook,
    'full_backward_hook': module_hooks.register_module_full_backward_hook,
    'full_backward_pre_hook': module_hooks.register_module_full_backward_pre_hook,
}


@pytest.mark.parametrize('scale', [0.5, 0])
@pytest.mark.parametrize('arch', [ContextCluster.arch_zoo[name] for name in ('tiny2', 'small')])
def test_hooks_fire_on_every_leaf(arch, scale, taken):
    model = build(dict(arch, depths=(1, 1, 1, 1)), scale)
    leaves = {m for m in model.modules() if not list(m.children())}
    assert len(leaves) == 4 * len(LEAVES) + 4 + 1  # reducers, and the norm of the output
    x = image()[:1, :, :32, :48].requires_grad_()
    expected = model(x)[-1]
    plain = len(taken)
    assert plain >= 8
    for kind, register_global in HOOKS.items():
        of_each = [getattr(m, f'register_{kind}') for m in leaves]
        for registers in ([register_global], of_each):
            seen = set()
            handles = [register(lambda m, *_, s=seen: s.add(m)) for register in registers]
            out = model(x)[-1]
            out.sum().backward()
            for handle in handles:
                handle.remove()
            assert leaves <= seen, (kind, len(registers), len(leaves - seen))
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert len(taken) == plain
    model(x)
    assert len(taken) == 2 * plain


class LoRA(nn.Module):
    """A wrapped linear layer, as adapter libraries make it: weight and bias are the base's."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_features, 2))

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def put(model, leaf, change):
    for block in blocks(model):
        parent, _, name = leaf.rpartition('.')
        parent = block.get_submodule(parent)
        setattr(parent, name, change(getattr(parent, name)))
    return model


@pytest.mark.parametrize('leaf', LINEAR)
def test_adapters_count_and_learn(leaf):
    model, x = build().requires_grad_(False), image()
    before = model(x)[-1]
    adapted = put(copy.deepcopy(model), leaf, LoRA)
    after = adapted(x)[-1]
    (after * torch.randn_like(after)).sum().backward()  # that of the sum of a norm is 0
    assert all(p.grad.any() for n, p in adapted.named_parameters() if n.endswith('.up'))

    def merge(layer):
        layer.base.weight.add_(layer.up @ layer.down)
        return layer.base

    torch.testing.assert_close(put(adapted, leaf, merge)(x)[-1], after, rtol=1e-3, atol=1e-3)

    def change_class(layer):
        layer.__class__ = Doubled
        return layer

    assert (put(model, leaf, change_class)(x)[-1] - before).abs().max() > 1e-3


@pytest.mark.parametrize('scale', [0.5, 0])
@pytest.mark.parametrize('leaf', [*LEAVES, 'mixer', 'mlp'])
def test_a_forward_of_the_instance_is_used(leaf, scale):
    model, x = build(scale=scale), image()
    before = model(x)[-1]
    for block in blocks(model):
        module = block.get_submodule(leaf)
        module.forward = lambda *args, old=module.forward: 0.5 * old(*args)
    assert not torch.equal(model(x)[-1], before)


@pytest.mark.parametrize(
    'change',
    [
        lambda m: prune.l1_unstructured(m, 'weight', 0.3),
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
    ],
)
def test_reparametrized_models_train(change):
    model, x = build().train(), image()
    for module in list(model.modules()):
        if type(module) is nn.Linear:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                change(module)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(3):
        losses.append(model(x)[-1].square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    out = model.eval()(x)[-1]
    torch.testing.assert_close(set_backend(model, 'reference')(x)[-1], out, rtol=1e-3, atol=1e-3)


def set_backend(model, backend):
    for block in blocks(model):
        block.mixer.backend = backend
    return model


def test_traced_models():
    model, x = build().requires_grad_(False), image()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(model, x)
    for batch in (2, 3):
        x = image(batch=batch)
        torch.testing.assert_close(traced(x)[-1], model(x)[-1], rtol=1e-4, atol=1e-5)


def test_function_transforms():
    """grad, vmap and forward AD agree with plain autograd, before and after it."""
    model, x = build().double(), image(torch.float64)[:, :, :32, :48]
    weights = dict(model.named_parameters())
    plain = {n: p.detach() for n, p in weights.items()}

    def loss(weights, x):
        return functional_call(model, weights, (x,))[-1].square().sum()

    expected = torch.autograd.grad(loss(weights, x), list(weights.values()))
    assert_all_close(grad(loss)(plain, x).values(), expected, rtol=1e-8, atol=1e-9)
    per_image = vmap(grad(loss), (None, 0))(plain, x[:, None]).values()
    assert_all_close([g.sum(0) for g in per_image], expected, rtol=1e-8, atol=1e-9)

    towards, step = torch.randn_like(x), 1e-6
    numeric = (loss(plain, x + step * towards) - loss(plain, x - step * towards)) / (2 * step)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, towards)
        tangent = forward_ad.unpack_dual(loss(plain, dual)).tangent
    torch.testing.assert_close(tangent, numeric, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss(weights, x), loss(plain, x))


def test_meta_tensors():
    with torch.device('meta'):
        model = build()
        out = model(torch.empty(2, 3, 64, 64))[-1]
    assert (out.device.type, tuple(out.shape)) == ('meta', (2, 16, 2, 2))
    assert set_backend(model, 'reference')(torch.empty(1, 3, 36, 52, device='meta'))


def test_fake_tensors_leave_nothing_behind():
    """Nor do they meet what real ones left: cached positions and regions."""
    size, model = (44, 60), build(out_indices=(0, 3))  # one that no test has used before
    for _ in range(2):
        with FakeTensorMode():
            assert build()(torch.randn(1, 3, *size))[-1].shape == (1, 16, 2, 2)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model(mode.from_tensor(torch.randn(1, 3, *size)))
        assert type(model(torch.randn(1, 3, *size))[-1]) is torch.Tensor


def test_counters_count_every_layer(taken):
    model, x = build(), image()
    model(x)
    plain = len(taken)
    with FlopCounterMode(display=False) as counter:
        model(x)
    counts = counter.get_flop_counts()
    assert len(taken) == plain
    for name in ('mlp.fc2', 'mlp.fc1', 'mixer.in_proj', 'mixer.out_proj'):
        module = model.stages[0].blocks[0].get_submodule(name)
        found = sum(counts[f'ContextCluster.stages.0.blocks.0.{name}'].values())
        assert found == 2 * 2 * 16 * 16 * module.weight.numel()
