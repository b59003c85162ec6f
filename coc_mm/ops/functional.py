"""One function in front of every backend, and what each backend can run."""

import os
from typing import Any

import torch

from coc_mm.ops.backends import ClusterSettings, in_float32, matmul, no_autocast, reference
from coc_mm.ops.backends import triton_op as triton
from coc_mm.ops.backends.triton_op import can_run_triton
from coc_mm.ops.regions import is_transformed, region_layout

DENOMINATORS = ('similarity', 'count')


def can_run_reference(
    features: torch.Tensor,
    proposals: tuple[int, int] = (2, 2),
    folds: tuple[int, int] = (1, 1),
    raise_error: bool = False,
) -> bool:
    """Return True: this backend runs on any points. Arguments as for :func:`can_run_triton`."""
    return True


can_run_matmul = can_run_fused = can_run_reference  # 'fused' is the earlier name of 'matmul'


def _on_gpu(features, values, alpha, beta, settings):
    can_fall_back = not (settings.backend or _wanted())  # never from what was asked for by name
    proposals, folds, denominator = settings[:3]
    points = features, values, alpha, beta
    return triton.forward(*points, proposals, folds, denominator, can_fall_back)


# Fastest first.
_BACKENDS: dict[str, Any] = {
    'triton': (_on_gpu, can_run_triton),
    'matmul': (in_float32(matmul.forward), can_run_matmul),
    'fused': (in_float32(matmul.forward), can_run_matmul),
    'reference': (in_float32(reference.forward), can_run_reference),
}


def context_cluster(
    features: torch.Tensor,
    values: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    proposals: tuple[int, int] = (2, 2),
    folds: tuple[int, int] = (1, 1),
    denominator: str = 'similarity',
    backend: str | None = None,
) -> torch.Tensor:
    """Cluster the points of a map and exchange values within each cluster.

    The mixer of Context Cluster (`Image as Set of Points <https://arxiv.org/abs/2303.01494>`_,
    section 3.2) between its projections: per head and region, centers are adaptive averages of the
    points, each point joins the one center it is most similar to, the values of a cluster are
    averaged with their similarities as weights, and sent back to its points with the same weights.
    See :func:`coc_mm.ops.backends.reference.forward` for the equations and
    :mod:`coc_mm.ops.regions` for maps that the folds do not divide.

    ``features`` and ``values`` are (B, H, W, E, D), E heads of D channels with any strides, and so
    is the output, in the dtype of ``values``; similarities and sums are float32, float64 for
    float64 inputs, also under autocast. ``alpha`` and ``beta`` (one element) scale and shift the
    cosine; ``proposals`` are the centers per region and ``folds`` the regions, (rows, columns). An
    aggregate is divided by the sum of similarities in its cluster, or by its number of points with
    ``denominator='count'``, as weights published before June 2023 need.

    ``backend`` is 'reference', 'matmul' (earlier 'fused') or 'triton', a RuntimeError where it
    cannot run; None takes the environment's ``COC_MM_BACKEND`` or the fastest that can.
    """
    settings = ClusterSettings(proposals, folds, denominator, backend)
    _check(features, values, settings)
    return _choose(features, settings)(features, values, alpha, beta, settings)


def context_cluster_packed(
    projected: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    proposals: tuple[int, int] = (2, 2),
    folds: tuple[int, int] = (1, 1),
    denominator: str = 'similarity',
    backend: str | None = None,
) -> torch.Tensor:
    """Run :func:`context_cluster` on both spaces as one projection leaves them.

    The same as ``context_cluster(*projected.unbind(-3), ...)``, which would have to put the
    gradients of the two spaces together again: here 'triton' writes them to where they belong.
    """
    if projected.dim() != 6 or projected.shape[3] != 2:
        raise ValueError(
            f'the projected map must be (B, H, W, 2, heads, channels), got {tuple(projected.shape)}'
        )
    settings = ClusterSettings(proposals, folds, denominator, backend)
    features, values = projected.unbind(-3)
    _check(features, values, settings)
    forward = _choose(features, settings)
    if forward is _on_gpu:
        return forward(projected, None, alpha, beta, settings)
    return forward(features, values, alpha, beta, settings)


def assign_points(
    features: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    proposals: tuple[int, int] = (2, 2),
    folds: tuple[int, int] = (1, 1),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each point's center in its region, region (both row-major), similarity: (B, H, W, E).

    Arguments are those of :func:`context_cluster`.
    """
    _check(features, features, ClusterSettings(proposals, folds))
    dtype = torch.promote_types(features.dtype, torch.float32)
    layout = region_layout(features, proposals, folds)
    with no_autocast(features):
        x = layout.split(features.to(dtype))
        s, index = reference.similarity(x, alpha.to(dtype), beta.to(dtype), layout).max(-2)
    region = torch.arange(x.shape[1], device=x.device)[:, None, None].expand_as(index)
    index, region, s = (layout.merge(t.unsqueeze(-1)).squeeze(-1) for t in (index, region, s))
    return index, region, s


def uses_matmul(backend: str | None = None) -> bool:
    """Say whether 'matmul' is what a CPU would run for this ``backend``."""
    return (backend or _wanted() or 'matmul') in ('matmul', 'fused')


def _wanted():
    return os.environ.get('COC_MM_BACKEND') or None


def _choose(features, settings):
    backend = settings.backend or _wanted()
    cut = dict(proposals=settings.proposals, folds=settings.folds)
    if backend is None:
        # Triton's interpreter, which lets the CPU run its kernels, is for testing.
        on_gpu = features.device.type == 'cuda' and not is_transformed()
        backend = 'triton' if on_gpu and can_run_triton(features, **cut) else 'matmul'
    if backend not in _BACKENDS:
        raise ValueError(f'unknown backend {backend!r}: choose one of {sorted(_BACKENDS)}')
    forward, can_run = _BACKENDS[backend]
    can_run(features, **cut, raise_error=True)
    return forward


def _check(features, values, settings):
    if features.dim() != 5 or features.shape != values.shape:
        raise ValueError(
            'features and values must both be (B, H, W, heads, channels), got '
            f'{tuple(features.shape)} and {tuple(values.shape)}'
        )
    if 0 in features.shape[1:]:
        raise ValueError(f'a map without points or channels: {tuple(features.shape)}')
    for name, pair in (('proposals', settings.proposals), ('folds', settings.folds)):
        if len(pair) != 2 or min(pair) < 1:
            raise ValueError(f'{name} must be two positive numbers (rows, columns), got {pair}')
    if settings.denominator not in DENOMINATORS:
        raise ValueError(
            f'unknown denominator {settings.denominator!r}: choose one of {DENOMINATORS}'
        )
