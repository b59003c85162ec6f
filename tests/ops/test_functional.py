"""The operator's functions: what they refuse, take by default, and whom they ask."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from ops_cases import points, scalars

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


@pytest.mark.parametrize('name', ['reference', 'matmul', 'fused', None])
def test_backend_choice(name, monkeypatch):
    calls = []
    for key, (forward, can_run) in list(_BACKENDS.items()):
        noted = lambda *a, k=key, f=forward: calls.append(k) or f(*a)  # noqa: E731
        monkeypatch.setitem(_BACKENDS, key, (noted, can_run))
    monkeypatch.setenv('COC_MM_BACKEND', 'reference')
    context_cluster(*points(1, 4, 4, 1, 2), *scalars(), backend=name)
    assert calls == [name or 'reference']


def test_a_backend_is_asked_about_the_setting(monkeypatch):
    """The cut decides what a backend can run; one asked for by name gives its reason."""
    asked = []

    def can_run(features, proposals, folds, raise_error=False):
        asked.append((tuple(features.shape), proposals, folds, raise_error))
        if len(asked) == 3:
            raise RuntimeError('not on this device')
        return True

    spaces, settings = points(1, 4, 6, 1, 2), dict(proposals=(3, 2), folds=(1, 2), backend='matmul')
    monkeypatch.setitem(_BACKENDS, 'matmul', (_BACKENDS['matmul'][0], can_run))
    context_cluster(*spaces, *scalars(), **settings)
    context_cluster_packed(torch.stack(spaces, -3), *scalars(), **settings)
    with pytest.raises(RuntimeError, match='not on this device'):
        context_cluster(*spaces, *scalars(), **settings)
    assert asked == [((1, 4, 6, 1, 2), (3, 2), (1, 2), True)] * 3
    assert can_run_fused is can_run_matmul is can_run_reference


def message(function, *args, **kwargs):
    with pytest.raises(ValueError, match=r'must|without|unknown') as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_messages():
    features, values = points(1, 4, 4, 1, 2)
    inputs, packed = (features, values, *scalars()), torch.stack([features, values], dim=-3)
    shapes = 'features and values must both be (B, H, W, heads, channels), got '
    for given in [(features, values[:, :3]), (features[0], values[0])]:
        assert message(context_cluster, *given, *scalars()) == (
            f'{shapes}{tuple(given[0].shape)} and {tuple(given[1].shape)}'
        )
    for axis in (1, 4):
        empty = features.narrow(axis, 0, 0)
        expected = f'a map without points or channels: {tuple(empty.shape)}'
        assert message(context_cluster, empty, empty, *scalars()) == expected
        assert message(assign_points, empty, *scalars()) == expected
    for name, pair in product(('proposals', 'folds'), [(0, 1), (2,)]):
        expected = f'{name} must be two positive numbers (rows, columns), got {pair}'
        assert message(context_cluster, *inputs, **{name: pair}) == expected
        assert message(context_cluster_packed, packed, *scalars(), **{name: pair}) == expected
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


def test_defaults_are_the_paper_s():
    """Four centers of one region, the denominator of similarities, the fastest backend."""
    features, values = points(1, 6, 5, 2, 3)
    settings = (2, 2), (1, 1), 'similarity', 'fused'
    expected = context_cluster(features, values, *scalars(), *settings)
    assert torch.equal(context_cluster(features, values, *scalars()), expected)
    packed = torch.stack([features, values], dim=-3)
    assert torch.equal(context_cluster_packed(packed, *scalars()), expected)
    found = (assign_points(features, *scalars(), *cut) for cut in ((), ((2, 2), (1, 1))))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    ('variable', 'backend', 'expected'),
    [
        ('', None, True),
        ('fused', None, True),
        ('reference', 'matmul', True),
        ('reference', None, False),
        ('fused', 'reference', False),
    ],
)
def test_uses_matmul(variable, backend, expected, monkeypatch):
    monkeypatch.setenv('COC_MM_BACKEND', variable)
    assert uses_matmul(backend) is expected


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
    monkeypatch.delenv('COC_MM_BACKEND', raising=False)
    monkeypatch.setattr(functional, 'can_run_triton', lambda x, **cut: asked.append(x) or True)
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
