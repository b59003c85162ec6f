"""The equations against a loop over points, and what follows from their rules."""

import math
from itertools import product

import pytest
import torch

from coc_mm.ops import assign_points, context_cluster
from coc_mm.ops.functional import _BACKENDS

# 'triton' does not take float64, which most tests use: see test_triton.py.
BACKENDS = sorted(set(_BACKENDS) - {'triton', 'fused'})


def loop(features, values, alpha, beta, proposals, folds, denominator='similarity', assigned=None):
    """Compute the mixer point by point, in plain Python over float64 vectors.

    ``assigned`` receives the center, the region and the similarity of every point.
    """
    batch, height, width, heads, _ = features.shape
    out = torch.full_like(values, math.nan)

    def cut(length, parts):
        parts = min(parts, length)
        return [range(i * length // parts, (i + 1) * length // parts) for i in range(parts)]

    def windows(points, parts):
        n = len(points)
        return [points[i * n // parts : -(-(i + 1) * n // parts)] for i in range(parts)]

    for b in range(batch):
        for e in range(heads):
            cuts = product(cut(height, folds[0]), cut(width, folds[1]))
            for region, (rows, cols) in enumerate(cuts):
                x = {(r, c): features[b, r, c, e] for r in rows for c in cols}
                v = {(r, c): values[b, r, c, e] for r in rows for c in cols}
                centers = []
                for rw in windows(rows, proposals[0]):
                    for cw in windows(cols, proposals[1]):
                        window = [(r, c) for r in rw for c in cw]
                        centers.append(
                            tuple(sum(t[p] for p in window) / len(window) for t in (x, v))
                        )
                clusters = {m: [] for m in range(len(centers))}
                for p, xp in x.items():
                    s = [
                        torch.sigmoid(
                            beta + alpha * torch.dot(xc, xp) / (xc.norm() * xp.norm())
                        ).item()
                        for xc, _ in centers
                    ]
                    # Equal up to rounding is equal; the first of equals wins.
                    m = next(m for m in range(len(s)) if s[m] >= max(s) - 1e-14)
                    clusters[m].append((p, s[m]))
                    if assigned is not None:
                        assigned[:, b, p[0], p[1], e] = torch.tensor(
                            [m, region, s[m]], dtype=torch.float64
                        )
                for m, members in clusters.items():
                    weight = sum(s if denominator == 'similarity' else 1 for _, s in members)
                    g = (sum(s * v[p] for p, s in members) + centers[m][1]) / (weight + 1)
                    for p, s in members:
                        out[b, p[0], p[1], e] = s * g
    return out


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
@pytest.mark.parametrize('case', CASES)
def test_loop_over_points(case, denominator, backend):
    height, width, proposals, folds = case
    features, values = points(2, height, width, 2, 3)
    alpha, beta = scalars()
    expected = loop(features, values, alpha, beta, proposals, folds, denominator)
    actual = context_cluster(
        features, values, alpha, beta, proposals, folds, denominator, backend=backend
    )
    assert not expected.isnan().any()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize('backend', BACKENDS)
def test_first_of_equal_centers_wins(backend):
    # One point per region and four times the same center: one cluster of one point.
    features, values = points(1, 2, 2, 1, 3)
    alpha, beta = scalars()
    out = context_cluster(features, values, alpha, beta, (2, 2), (2, 2), backend=backend)
    s = torch.sigmoid(alpha + beta)
    torch.testing.assert_close(out, s * (s * values + values) / (s + 1))
    index, region, similarity = assign_points(features, alpha, beta, (2, 2), (2, 2))
    assert index.eq(0).all()
    assert region.flatten().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(similarity, s.expand_as(similarity))


@pytest.mark.parametrize('backend', BACKENDS)
def test_saturated_similarity_joins_the_first(backend):
    """The argmax is taken after the sigmoid: once it is 1.0 for all, the first wins."""
    features, values = points(1, 4, 4, 1, 3, dtype=torch.float32)
    alpha, beta = scalars(alpha=0.1, beta=100.0, dtype=torch.float32)
    index, _, s = assign_points(features, alpha, beta)
    assert index.eq(0).all()
    assert s.eq(1).all()
    out = context_cluster(features, values, alpha, beta, backend=backend)
    expected = (values.sum((1, 2)) + values[:, :2, :2].mean((1, 2))) / 17
    torch.testing.assert_close(out, expected[:, None, None].expand_as(out))


@pytest.mark.parametrize('backend', BACKENDS)
def test_zero_points_are_finite(backend):
    features, values = (torch.zeros(1, 4, 5, 2, 3, requires_grad=True) for _ in range(2))
    alpha, beta = (t.requires_grad_() for t in scalars(dtype=torch.float32))
    out = context_cluster(features, values, alpha, beta, (2, 2), (2, 2), backend=backend)
    out.sum().backward()
    assert out.eq(0).all()
    for t in (features, values, alpha, beta):
        assert t.grad.isfinite().all()


@pytest.mark.parametrize('case', CASES)
def test_assign_points(case):
    height, width, proposals, folds = case
    features, values = points(2, height, width, 2, 3)
    assigned = torch.full((3, 2, height, width, 2), math.nan, dtype=torch.float64)
    loop(features, values, *scalars(), proposals, folds, assigned=assigned)
    index, region, similarity = assign_points(features, *scalars(), proposals, folds)
    assert index.dtype == region.dtype == torch.int64
    assert torch.equal(index.double(), assigned[0])
    assert torch.equal(region.double(), assigned[1])
    torch.testing.assert_close(similarity, assigned[2])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_assignments_are_of_float32_at_least(dtype):
    features = points(2, 9, 8, 2, 16, dtype=torch.float32)[0].to(dtype)
    alpha, beta = scalars(dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = assign_points(features, alpha, beta, (2, 3), (2, 2))
    exact = torch.promote_types(dtype, torch.float32)
    expected = assign_points(features.to(exact), alpha.to(exact), beta.to(exact), (2, 3), (2, 2))
    assert actual[2].dtype == exact
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
