"""The operator's functions: what they refuse, take by default, and whom they ask."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from coc_mm.ops import (
    assign_points,
    can_run_fused,
    can_run_matmul,
    can_run_reference,
    context_cluster,
    context_cluster_packed,
    functional,
)
from coc_mm.ops.backends import triton_op as triton
from coc_mm.ops.functional import _BACKENDS, ClusterSettings, _choose, _on_gpu, uses_matmul
from coc_mm.ops.regions import region_layout


def points(*shape):
    return tuple(torch.randn(*shape, dtype=torch.float64) for _ in range(2))


def scalars():
    return tuple(torch.tensor([x], dtype=torch.float64) for x in (-1.3, 0.4))


@pytest.mark.parametrize('name', ['reference', 'matmul', 'fused', 'environment'])
def test_backend_choice(name, monkeypatch):
    features, values = points(1, 4, 4, 1, 2)
    calls = []
    for key, (forward, can_run) in list(_BACKENDS.items()):
        monkeypatch.setitem(
            _BACKENDS, key, (lambda *a, k=key, f=forward: calls.append(k) or f(*a), can_run)
        )
    backend = name
    if name == 'environment':
        monkeypatch.setenv('COC_MM_BACKEND', 'reference')
        backend = None
    context_cluster(features, values, *scalars(), backend=backend)
    assert calls == ['reference' if name == 'environment' else name]


def test_a_refusing_backend_raises_when_named(monkeypatch):
    def refuse(features, raise_error=False, **setting):
        if raise_error:
            raise RuntimeError('not on this device')
        return False

    features, values = points(1, 4, 4, 1, 2)
    monkeypatch.setitem(_BACKENDS, 'fused', (_BACKENDS['fused'][0], refuse))
    with pytest.raises(RuntimeError, match='not on this device'):
        context_cluster(features, values, *scalars(), backend='fused')
    assert can_run_reference(features) is can_run_matmul(features) is True
    assert can_run_fused is can_run_matmul


def message(function, *args, **kwargs):
    with pytest.raises(ValueError, match=r'must|without|unknown') as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_messages():
    features, values = points(1, 4, 4, 1, 2)
    inputs = (features, values, *scalars())
    shapes = 'features and values must both be (B, H, W, heads, channels), got '
    assert message(context_cluster, features, values[:, :3], *scalars()) == (
        f'{shapes}(1, 4, 4, 1, 2) and (1, 3, 4, 1, 2)'
    )
    assert message(context_cluster, features[0], values[0], *scalars()) == (
        f'{shapes}(4, 4, 1, 2) and (4, 4, 1, 2)'
    )
    for axis in (1, 2, 3, 4):
        empty = features.narrow(axis, 0, 0)
        expected = f'a map without points or channels: {tuple(empty.shape)}'
        assert message(context_cluster, empty, empty, *scalars()) == expected
        assert message(assign_points, empty, *scalars()) == expected
    for name, pair in product(('proposals', 'folds'), [(0, 1), (1, 0), (2,), (1, 2, 3)]):
        assert message(context_cluster, *inputs, **{name: pair}) == (
            f'{name} must be two positive numbers (rows, columns), got {pair}'
        )
        assert message(assign_points, features, *scalars(), **{name: pair}).startswith(name)
    assert message(context_cluster, *inputs, denominator='mean') == (
        "unknown denominator 'mean': choose one of ('similarity', 'count')"
    )
    assert message(context_cluster, *inputs, backend='nonsense') == (
        "unknown backend 'nonsense': choose one of ['fused', 'matmul', 'reference', 'triton']"
    )
    for shape in [(1, 4, 4, 3, 1, 2), (1, 4, 4, 2, 1)]:
        assert message(context_cluster_packed, torch.zeros(shape), *scalars()) == (
            f'the projected map must be (B, H, W, 2, heads, channels), got {shape}'
        )
    packed = torch.stack([features, values], dim=-3)
    for name, value in [('proposals', (0, 1)), ('folds', (1,)), ('denominator', 'mean')]:
        assert name in message(context_cluster_packed, packed, *scalars(), **{name: value})


def test_defaults_are_the_paper_s():
    """Four centers of one region, the denominator of similarities, the fastest backend."""
    features, values = points(1, 6, 5, 2, 3)
    expected = context_cluster(
        features, values, *scalars(), (2, 2), (1, 1), 'similarity', backend='fused'
    )
    assert torch.equal(context_cluster(features, values, *scalars()), expected)
    packed = torch.stack([features, values], dim=-3)
    assert torch.equal(context_cluster_packed(packed, *scalars()), expected)
    pairs = zip(
        assign_points(features, *scalars()),
        assign_points(features, *scalars(), (2, 2), (1, 1)),
        strict=True,
    )
    assert all(torch.equal(actual, expected) for actual, expected in pairs)


@pytest.mark.parametrize(
    ('variable', 'backend', 'expected'),
    [
        (None, None, True),
        ('', None, True),
        ('fused', None, True),
        ('matmul', None, True),
        ('reference', 'matmul', True),
        ('reference', None, False),
        ('reference', 'fused', True),
        ('fused', 'reference', False),
        (None, 'triton', False),
    ],
)
def test_uses_matmul(variable, backend, expected, monkeypatch):
    monkeypatch.delenv('COC_MM_BACKEND', raising=False)
    if variable is not None:
        monkeypatch.setenv('COC_MM_BACKEND', variable)
    assert uses_matmul(backend) is expected


def test_a_backend_is_asked_about_the_setting(monkeypatch):
    """What is asked, of whom: the cut decides what a backend can run."""
    asked = []

    def can_run(features, proposals, folds, raise_error=False):
        asked.append((tuple(features.shape), proposals, folds, raise_error))
        return True

    features, values = points(1, 4, 6, 1, 2)
    monkeypatch.delenv('COC_MM_BACKEND', raising=False)
    monkeypatch.setitem(_BACKENDS, 'matmul', (_BACKENDS['matmul'][0], can_run))
    packed = torch.stack([features, values], dim=-3)
    context_cluster(features, values, *scalars(), (3, 2), (1, 2), backend='matmul')
    context_cluster_packed(packed, *scalars(), (3, 2), (1, 2), backend='matmul')
    assert asked == [((1, 4, 6, 1, 2), (3, 2), (1, 2), True)] * 2


def test_kernels_get_both_spaces_as_they_lie(monkeypatch):
    """Everyone else gets them apart."""
    got = []

    def forward(*arguments):
        got.append(arguments)
        return arguments[0]

    monkeypatch.setattr(triton, 'forward', forward)
    monkeypatch.setitem(_BACKENDS, 'triton', (_on_gpu, lambda *args, **kwargs: True))
    monkeypatch.setitem(_BACKENDS, 'matmul', (lambda *args: forward(*args), can_run_matmul))
    projected, settings = torch.randn(1, 4, 6, 2, 1, 3), ((3, 2), (1, 2), 'count')
    alpha, beta = scalars()
    out = context_cluster_packed(projected, alpha, beta, *settings, backend='triton')
    assert out is projected
    context_cluster_packed(projected, alpha, beta, *settings, backend='matmul')
    (whole, nothing, *others), (features, values, *same) = got
    assert whole is projected
    assert nothing is None
    assert torch.equal(features, projected[:, :, :, 0])
    assert torch.equal(values, projected[:, :, :, 1])
    assert others == [alpha, beta, *settings, False]  # asked for by name: no other in its place
    assert same == [alpha, beta, ClusterSettings(*settings, 'matmul')]


@pytest.mark.parametrize('device', ['cuda', 'cpu', 'xpu'])
def test_kernels_are_the_choice_of_nvidia_s_devices_alone(device, monkeypatch):
    """On others they run in an interpreter at best, for testing."""
    asked = []

    def can_run(features, **setting):
        asked.append(features)
        return True

    monkeypatch.delenv('COC_MM_BACKEND', raising=False)
    monkeypatch.setattr(functional, 'can_run_triton', can_run)
    monkeypatch.setitem(_BACKENDS, 'triton', (_on_gpu, can_run_matmul))
    features = SimpleNamespace(device=SimpleNamespace(type=device))
    chosen = _choose(features, ClusterSettings())
    assert chosen is _BACKENDS['triton' if device == 'cuda' else 'matmul'][0]
    assert asked == ([features] if device == 'cuda' else [])


def test_everything_stays_on_the_device():
    features = torch.empty(1, 5, 7, 2, 3, device='meta')
    found = assign_points(features, *(t.float().to('meta') for t in scalars()), (2, 2), (2, 1))
    assert [(t.device.type, t.dtype, tuple(t.shape)) for t in found] == [
        ('meta', dtype, (1, 5, 7, 2)) for dtype in (torch.int64, torch.int64, torch.float32)
    ]
    assert region_layout(features, (2, 2), (2, 1)).pool.device.type == 'meta'
