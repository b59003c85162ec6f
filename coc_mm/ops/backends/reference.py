"""The equations of the paper as they stand, the yardstick of every backend.

Any device and dtype; memory grows with points times centers times channels.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from coc_mm.ops.regions import RegionLayout

EPS = 1e-12  # of torch.nn.functional.normalize, in every backend


def similarity(
    features: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor, layout: RegionLayout
) -> torch.Tensor:
    """Similarity of every point of a region to every center of that region.

    ``s[m, n] = sigmoid(beta + alpha * cos(center_m, x_n))``, the centers being the adaptive
    averages of the points: (B, R, E, N, D) to (B, R, E, M, N). A center that repeats an earlier one
    has -1, below every sigmoid, so that the first of equals wins.
    """
    centers = pool(features, layout)
    cosine = F.normalize(centers, dim=-1, eps=EPS) @ F.normalize(features, dim=-1, eps=EPS).mT
    s = torch.sigmoid(beta + alpha * cosine)
    if layout.center_mask is not None:
        s = s.masked_fill(~layout.center_mask[:, None, :, None], -1)
    return s


def pool(x: torch.Tensor, layout: RegionLayout) -> torch.Tensor:
    """Average the points (B, R, E, N, D) of each region into its centers (B, R, E, M, D)."""
    rows, cols = layout.rows, layout.cols
    if not layout.even:
        return layout.pool[:, None] @ x
    x = x.unflatten(3, (rows.size, cols.size)).movedim(-1, 3)  # (B, R, E, D, rows, columns)
    shape = x.shape[:4]
    x = F.adaptive_avg_pool2d(x.flatten(0, 2), layout.proposals)
    return x.flatten(2).unflatten(0, shape[:3]).mT


def forward(
    features: torch.Tensor,
    values: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    layout: RegionLayout,
    denominator: str,
    assignment: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cluster, aggregate and dispatch the points of every region.

    ``g_m = (sum_n s[m, n] v_n + vcenter_m) / (sum_n s[m, n] + 1)`` and
    ``out_n = s[m(n), n] g_m(n)``, where ``m(n)`` is the center of highest similarity and every
    other entry of ``s`` is 0 (arXiv 2303.01494, eq. 1-2). ``assignment`` (B, R, E, N) has points
    join other centers than the most similar ones.
    """
    x, v = layout.split(features), layout.split(values)
    s = similarity(x, alpha, beta, layout)
    index = s.argmax(-2) if assignment is None else assignment
    mask = torch.zeros_like(s).scatter(-2, index.unsqueeze(-2), 1)
    if layout.valid is not None:
        mask = mask * layout.valid[:, None, None]
    s = s * mask
    weight = (s if denominator == 'similarity' else mask).sum(-1, keepdim=True)
    s = s.unsqueeze(-1)  # (B, R, E, M, N, 1)
    g = ((v.unsqueeze(-3) * s).sum(-2) + pool(v, layout)) / (weight + 1)
    out = (g.unsqueeze(-2) * s).sum(-3)
    return layout.merge(out)


def differentiable_grads(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Return gradients that can be differentiated again, None for inputs that need none.

    For backward passes written by hand: ``function`` is made of operations that autograd knows.
    """
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=True))
    return [next(found) if t.requires_grad else None for t in inputs]
