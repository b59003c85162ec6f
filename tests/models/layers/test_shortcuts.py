"""Shortcuts are taken where nobody can notice, and nowhere else."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.nn.modules import module as module_hooks
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from coc_mm.models import ContextCluster
from coc_mm.models.layers import context_cluster_block

ARCH = dict(
    depths=(1, 1, 1, 1),
    dims=(8, 16, 16, 16),
    mlp_ratios=(2, 2, 2, 2),
    heads=(2, 2, 2, 2),
    head_dim=8,
    folds=(2, 2, 1, 1),
)
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
    calls = []
    for name in ('residual_mixer', 'residual_mlp', '_folded'):
        found = getattr(context_cluster_block, name)
        monkeypatch.setattr(
            context_cluster_block,
            name,
            lambda *a, f=found, n=name, **k: calls.append(n) or f(*a, **k),
        )
    return calls


HOOKS = {
    'forward_hook': module_hooks.register_module_forward_hook,
    'forward_pre_hook': module_hooks.register_module_forward_pre_hook,
    'full_backward_hook': module_hooks.register_module_full_backward_hook,
    'full_backward_pre_hook': module_hooks.register_module_full_backward_pre_hook,
}


@pytest.mark.parametrize('scale', [0.5, 0])
@pytest.mark.parametrize('arch', list(ContextCluster.arch_zoo))
def test_hooks_fire_on_every_leaf(arch, scale, taken):
    model = build(dict(ContextCluster.arch_zoo[arch], depths=(1, 1, 1, 1)), scale)
    leaves = {m for m in model.modules() if not list(m.children())}
    assert len(leaves) == 4 * len(LEAVES) + 4 + 1  # reducers, and the norm of the output
    x = image()[:1, :, :32, :48].requires_grad_()
    expected = model(x)[-1]
    plain = len(taken)
    assert plain >= 8
    for kind, register_global in HOOKS.items():
        for of_all in (False, True):
            seen = set()

            def hook(module, *args, seen=seen):
                seen.add(module)

            of_each = [getattr(m, f'register_{kind}') for m in leaves]
            handles = [register(hook) for register in ([register_global] if of_all else of_each)]
            out = model(x)[-1]
            out.sum().backward()
            for handle in handles:
                handle.remove()
            assert leaves <= seen, (kind, of_all, len(leaves - seen))
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
    """Of another class, though it is a linear layer."""

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
    assert (after - before).abs().max() > 1e-3
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
        lambda m: prune.random_structured(m, 'weight', 1, dim=0),
        nn.utils.weight_norm,
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
        optimizer.zero_grad()
        loss = model(x)[-1].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    out = model.eval()(x)[-1]
    torch.testing.assert_close(set_backend(model, 'reference')(x)[-1], out, rtol=1e-3, atol=1e-3)


def set_backend(model, backend):
    for block in blocks(model):
        block.mixer.backend = backend
    return model


def test_dynamic_quantization():
    model, x = build(), image()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert sum('Quantized' in type(m).__name__ or m.__module__.startswith('torch.ao')
               for m in quantized.modules()) >= 16  # fmt: skip
    expected = model(x)[-1]
    assert 0 < (quantized(x)[-1] - expected).norm() < 0.3 * expected.norm()


def test_traced_models_are_saved_and_loaded():
    model, x = build().requires_grad_(False), image()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.trace(model, x), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for batch in (2, 3):
        x = image(batch=batch)
        torch.testing.assert_close(loaded(x)[-1], model(x)[-1], rtol=1e-4, atol=1e-5)


def test_function_transforms():
    """grad, vmap, jvp, jacrev and forward AD agree with plain autograd, before and after it."""
    model, x = build().double(), image(torch.float64)[:, :, :32, :48]
    weights = dict(model.named_parameters())
    plain = {n: p.detach() for n, p in weights.items()}

    def run(weights, x):
        return functional_call(model, weights, (x,))[-1]

    def loss(weights, x):
        return run(weights, x).square().sum()

    expected = torch.autograd.grad(loss(weights, x), list(weights.values()))
    for found, wanted in zip(grad(loss)(plain, x).values(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)
    per_image = vmap(grad(loss), (None, 0))(plain, x[:, None])
    for found, wanted in zip(per_image.values(), expected, strict=True):
        torch.testing.assert_close(found.sum(0), wanted, rtol=1e-8, atol=1e-9)
    other = build(arch=dict(ARCH)).double()
    nn.init.normal_(other.stages[0].blocks[0].mlp.fc2.weight)
    stacked, _ = stack_module_state([model, other])
    both = vmap(lambda w: run(w, x))(stacked)
    torch.testing.assert_close(both, torch.stack([model(x)[-1], other(x)[-1]]))

    towards = torch.randn_like(x)
    step = 1e-6
    numeric = (loss(plain, x + step * towards) - loss(plain, x - step * towards)) / (2 * step)
    torch.testing.assert_close(
        jvp(lambda x: loss(plain, x), (x,), (towards,))[1], numeric, rtol=1e-5, atol=1e-6
    )
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, towards)
        tangent = forward_ad.unpack_dual(loss(plain, dual)).tangent
    torch.testing.assert_close(tangent, numeric, rtol=1e-5, atol=1e-6)
    scales = plain['stages.0.blocks.0.layer_scale1']
    name = 'stages.0.blocks.0.layer_scale1'
    jacobian = jacrev(lambda s: run({**plain, name: s}, x).mean((2, 3)))(scales)
    assert jacobian.shape == (2, 16, 8)

    torch.testing.assert_close(loss(weights, x), loss(plain, x))


def test_meta_tensors():
    with torch.device('meta'):
        model = build()
        out = model(torch.empty(2, 3, 64, 64))[-1]
    assert (out.device.type, tuple(out.shape)) == ('meta', (2, 16, 2, 2))
    assert set_backend(model, 'reference')(torch.empty(1, 3, 36, 52, device='meta'))


@pytest.mark.parametrize('size', [(40, 56), (44, 52)])
@pytest.mark.parametrize('first', ['fake', 'real'])
def test_fake_tensors_leave_nothing_behind(first, size):
    """Nor do they meet what real ones left: cached positions and regions."""
    size = (size[0] + 4 * (first == 'fake'), size[1])  # one that no test has used before
    model = build(out_indices=(0, 3))
    order = ('fake', 'real', 'fake', 'real') if first == 'fake' else ('real', 'fake', 'real')
    for kind in order:
        if kind == 'real':
            assert type(model(torch.randn(1, 3, *size))[-1]) is torch.Tensor
            continue
        with FakeTensorMode():
            assert build()(torch.randn(1, 3, *size))[-1].shape == (1, 16, 2, 2)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model(mode.from_tensor(torch.randn(1, 3, *size)))


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
