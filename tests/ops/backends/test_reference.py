"""The equations against a loop over points, and what follows from their rules."""

import math
from itertools import product

import pytest
import torch
from ops_cases import BACKENDS, CASES, points, scalars

from coc_mm.ops import assign_points, context_cluster


def loop(features, values, alpha, beta, proposals, folds, denominator):
    """Compute the mixer point by point, in plain Python over float64 vectors.

    Return the output and (3, B, H, W, E), the center, region and similarity of every point.
    """
    batch, height, width, heads, _ = features.shape
    out = torch.full_like(values, math.nan)
    assigned = features.new_full((3, *features.shape[:4]), math.nan)

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
                    assigned[:, b, *p, e] = features.new_tensor([m, region, s[m]])
                for m, members in clusters.items():
                    weight = sum(s if denominator == 'similarity' else 1 for _, s in members)
                    g = (sum(s * v[p] for p, s in members) + centers[m][1]) / (weight + 1)
                    for p, s in members:
                        out[b, p[0], p[1], e] = s * g
    return out, assigned


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('denominator', ['similarity', 'count'])
@pytest.mark.parametrize('case', CASES)
def test_loop_over_points(case, denominator, backend):
    height, width, *setting = case
    features, values = points(2, height, width, 2, 3)
    expected, assigned = loop(features, values, *scalars(), *setting, denominator)
    actual = context_cluster(features, values, *scalars(), *setting, denominator, backend=backend)
    assert not expected.isnan().any()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    index, region, similarity = assign_points(features, *scalars(), *setting)
    assert index.dtype == region.dtype == torch.int64
    assert torch.equal(torch.stack([index, region]).double(), assigned[:2])
    torch.testing.assert_close(similarity, assigned[2])


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
