"""One function for every backend, and what each backend can run."""

import os

import torch

from coc_mm.ops import regions
from coc_mm.ops.backends import matmul, reference
from coc_mm.ops.backends import triton_op as triton
from coc_mm.ops.backends.triton_op import can_run_triton

DENOMINATORS = ('similarity', 'count')


def can_run_reference(
    features: torch.Tensor,
    proposals: tuple[int, int] = (2, 2),
    folds: tuple[int, int] = (1, 1),
    raise_error: bool = False,
) -> bool:
    """Say whether the broadcast formulation runs on these points: always.

    Args:
        features (Tensor): (B, H, W, E, D).
        proposals (tuple[int, int]): Centers per region. Defaults to (2, 2).
        folds (tuple[int, int]): Regions. Defaults to (1, 1).
        raise_error (bool): Accepted for symmetry. Defaults to False.

    Returns:
        bool: True.
    """
    return True


def can_run_fused(
    features: torch.Tensor,
    proposals: tuple[int, int] = (2, 2),
    folds: tuple[int, int] = (1, 1),
    raise_error: bool = False,
) -> bool:
    """Say whether the lean PyTorch formulation runs on these points: always.

    Args:
        features (Tensor): (B, H, W, E, D).
        proposals (tuple[int, int]): Centers per region. Defaults to (2, 2).
        folds (tuple[int, int]): Regions. Defaults to (1, 1).
        raise_error (bool): Accepted for symmetry. Defaults to False.

    Returns:
        bool: True.
    """
    return True


def _in_pytorch(forward):
    """Let a formulation of equal regions, in float32 at least, take any points."""

    def run(features, values, alpha, beta, proposals, folds, denominator):
        dtype = _compute_dtype(features)
        with torch.autocast(features.device.type, enabled=False):
            rows, cols = _axes(features, proposals, folds, dtype)
            out = forward(
                regions.pad(features.to(dtype), rows, cols),
                regions.pad(values.to(dtype), rows, cols),
                alpha.to(dtype),
                beta.to(dtype),
                rows,
                cols,
                denominator,
            )
            return regions.unpad(out, rows, cols).to(values.dtype)

    return run


# Fastest first.
_BACKENDS = {
    'triton': (triton.forward, can_run_triton),
    'fused': (_in_pytorch(matmul.forward), can_run_fused),
    'reference': (_in_pytorch(reference.forward), can_run_reference),
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

    The mixer of Context Cluster (`Image as Set of Points
    <https://arxiv.org/abs/2303.01494>`_, section 3.2) between its projections:
    per head and region, centers are adaptive averages of the points, each
    point joins the one center it is most similar to, the values of a cluster
    are averaged with their similarities as weights, and sent back to its
    points with the same weights. See
    :func:`coc_mm.ops.backends.reference.forward` for the equations and
    :mod:`coc_mm.ops.regions` for maps that the folds do not
    divide.

    The similarity and the sums are computed in float32, or in float64 for
    float64 inputs, also under autocast.

    Args:
        features (Tensor): (B, H, W, E, D), the points in the similarity space,
            E heads of D channels. Any strides, B may be 0.
        values (Tensor): (B, H, W, E, D), the points in the value space, same
            dtype and device.
        alpha (Tensor): Scale of the cosine, one element.
        beta (Tensor): Offset of the similarity, one element.
        proposals (tuple[int, int]): Centers per region, (rows, columns).
            Defaults to (2, 2).
        folds (tuple[int, int]): Regions, (rows, columns). An axis shorter than
            its folds has one region per point. Defaults to (1, 1).
        denominator (str): What an aggregate is divided by, beside the one of
            its center: 'similarity', the sum of similarities in the cluster,
            or 'count', its number of points, as weights published before
            June 2023 need. Defaults to 'similarity'.
        backend (str | None): 'reference', 'fused', 'triton' or None, which takes
            the environment variable ``COC_MM_BACKEND`` and then the fastest
            that can run. Defaults to None.

    Returns:
        Tensor: (B, H, W, E, D) in the dtype of ``values``.

    Raises:
        ValueError: For inputs of other shapes, a number that is not positive,
            an unknown denominator or backend.
        RuntimeError: When a backend asked for by name cannot run, with the reason.
    """
    _check(features, values, proposals, folds, denominator)
    forward = _choose(features, proposals, folds, backend)
    return forward(features, values, alpha, beta, proposals, folds, denominator)


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
    gradients of the two spaces together again: here ``triton`` writes them to where they belong.

    Args:
        projected (Tensor): (B, H, W, 2, E, D), features, then values. Any strides, B may be 0.
        alpha (Tensor): Scale of the cosine, one element.
        beta (Tensor): Offset of the similarity, one element.
        proposals (tuple[int, int]): Centers per region. Defaults to (2, 2).
        folds (tuple[int, int]): Regions. Defaults to (1, 1).
        denominator (str): 'similarity' or 'count'. Defaults to 'similarity'.
        backend (str | None): As for :func:`context_cluster`. Defaults to None.

    Returns:
        Tensor: (B, H, W, E, D) in the dtype of ``projected``.

    Raises:
        ValueError: As :func:`context_cluster`, and for another shape.
        RuntimeError: When a backend asked for by name cannot run.
    """
    if projected.dim() != 6 or projected.shape[3] != 2:
        raise ValueError(
            f'the projected map must be (B, H, W, 2, heads, channels), got {tuple(projected.shape)}'
        )
    features, values = projected.unbind(-3)
    _check(features, values, proposals, folds, denominator)
    forward = _choose(features, proposals, folds, backend)
    if forward is triton.forward:
        return forward(projected, None, alpha, beta, proposals, folds, denominator)
    return forward(features, values, alpha, beta, proposals, folds, denominator)


def assign_points(
    features: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    proposals: tuple[int, int] = (2, 2),
    folds: tuple[int, int] = (1, 1),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return which center every point belongs to, and how similar it is.

    Args:
        features (Tensor): (B, H, W, E, D), as for :func:`context_cluster`.
        alpha (Tensor): Scale of the cosine, one element.
        beta (Tensor): Offset of the similarity, one element.
        proposals (tuple[int, int]): Centers per region. Defaults to (2, 2).
        folds (tuple[int, int]): Regions. Defaults to (1, 1).

    Returns:
        tuple[Tensor, Tensor, Tensor]: Each (B, H, W, E): the center within the
        region, row-major, int64; the region, row-major, int64; the similarity,
        float32 or float64.
    """
    _check(features, features, proposals, folds, 'similarity')
    dtype = _compute_dtype(features)
    with torch.autocast(features.device.type, enabled=False):
        rows, cols = _axes(features, proposals, folds, dtype)
        x = regions.split(regions.pad(features.to(dtype), rows, cols), rows, cols)
        s, index = reference.similarity(x, alpha.to(dtype), beta.to(dtype), rows, cols).max(-2)
        region = torch.arange(x.shape[1], device=x.device)[:, None, None].expand_as(index)
        index, region, s = (
            regions.unpad(regions.merge(t.unsqueeze(-1), rows, cols), rows, cols).squeeze(-1)
            for t in (index, region, s)
        )
    return index, region, s


def uses_fused(backend: str | None = None) -> bool:
    """Say whether the ``fused`` formulation is what a CPU would run.

    Args:
        backend (str | None): As for :func:`context_cluster`. Defaults to None.

    Returns:
        bool: True for 'fused', and for None unless ``COC_MM_BACKEND`` says otherwise.
    """
    return (backend or _wanted() or 'fused') == 'fused'


@torch.compiler.assume_constant_result  # compilers of torch 2.4 cannot read the environment
def _wanted():
    return os.environ.get('COC_MM_BACKEND') or None


def _compute_dtype(x):
    return torch.promote_types(x.dtype, torch.float32)


def _axes(x, proposals, folds, dtype):
    return tuple(
        regions.axis(x.shape[1 + i], folds[i], proposals[i], x.device, dtype) for i in range(2)
    )


def _choose(features, proposals, folds, backend):
    backend = backend or _wanted()
    if backend is None:
        # Triton's interpreter, which lets the CPU run its kernels, is for testing.
        names = [n for n in _BACKENDS if n != 'triton' or features.device.type == 'cuda']
        for forward, can_run in (_BACKENDS[n] for n in names):
            if can_run(features, proposals=proposals, folds=folds):
                return forward
    if backend not in _BACKENDS:
        raise ValueError(f'unknown backend {backend!r}: choose one of {sorted(_BACKENDS)}')
    forward, can_run = _BACKENDS[backend]
    can_run(features, proposals=proposals, folds=folds, raise_error=True)
    return forward


def _check(features, values, proposals, folds, denominator):
    if features.dim() != 5 or features.shape != values.shape:
        raise ValueError(
            'features and values must both be (B, H, W, heads, channels), got '
            f'{tuple(features.shape)} and {tuple(values.shape)}'
        )
    if 0 in features.shape[1:]:
        raise ValueError(f'a map without points or channels: {tuple(features.shape)}')
    for name, pair in (('proposals', proposals), ('folds', folds)):
        if len(pair) != 2 or min(pair) < 1:
            raise ValueError(f'{name} must be two positive numbers (rows, columns), got {pair}')
    if denominator not in DENOMINATORS:
        raise ValueError(f'unknown denominator {denominator!r}: choose one of {DENOMINATORS}')
