"""The equations of the paper as they stand, the yardstick of every backend.

Any device and dtype; memory grows with points times centers times channels.
"""

import torch
import torch.nn.functional as F

from coc_mm.ops import regions


def similarity(
    features: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    rows: regions.Axis,
    cols: regions.Axis,
) -> torch.Tensor:
    """Similarity of every point of a region to every center of that region.

    ``s[m, n] = sigmoid(beta + alpha * cos(center_m, x_n))``, the centers being
    the adaptive averages of the points.

    Args:
        features (Tensor): (B, regions, E, N, D), points in the similarity space.
        alpha (Tensor): Scale, one element.
        beta (Tensor): Offset, one element.
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.

    Returns:
        Tensor: (B, regions, E, M, N). A center that repeats an earlier one has
        -1, below every sigmoid, so that the first of equals wins.
    """
    centers = pool(features, rows, cols)
    cosine = F.normalize(centers, dim=-1) @ F.normalize(features, dim=-1).transpose(-2, -1)
    s = torch.sigmoid(beta + alpha * cosine)
    unique = regions.unique_centers(rows, cols)
    if unique is not None:
        s = s.masked_fill(~unique[:, None, :, None], -1)
    return s


def pool(x: torch.Tensor, rows: regions.Axis, cols: regions.Axis) -> torch.Tensor:
    """Average the points of each region into its centers.

    Args:
        x (Tensor): (B, regions, E, N, D).
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.

    Returns:
        Tensor: (B, regions, E, M, D), centers row-major.
    """
    b, _, e, _, d = x.shape
    proposals = rows.pool.shape[1], cols.pool.shape[1]
    r, m = rows.folds * cols.folds, proposals[0] * proposals[1]
    if rows.valid is None and cols.valid is None:
        x = x.reshape(b * r * e, rows.size, cols.size, d).permute(0, 3, 1, 2)
        x = F.adaptive_avg_pool2d(x, proposals).flatten(2).transpose(1, 2)
        return x.reshape(b, r, e, m, d)
    x = x.reshape(b, rows.folds, cols.folds, e, rows.size, cols.size, d)
    x = torch.einsum('ryh,cxw,brcehwd->brceyxd', rows.pool, cols.pool, x)
    return x.reshape(b, r, e, m, d)


def forward(
    features: torch.Tensor,
    values: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    rows: regions.Axis,
    cols: regions.Axis,
    denominator: str,
) -> torch.Tensor:
    """Cluster, aggregate and dispatch the points of every region.

    ``g_m = (sum_n s[m, n] v_n + vcenter_m) / (sum_n s[m, n] + 1)`` and
    ``out_n = s[m(n), n] g_m(n)``, where ``m(n)`` is the center of highest
    similarity and every other entry of ``s`` is 0 (arXiv 2303.01494, eq. 1-2).

    Args:
        features (Tensor): (B, H', W', E, D), padded points, similarity space.
        values (Tensor): (B, H', W', E, D), padded points, value space.
        alpha (Tensor): Scale of the similarity, one element.
        beta (Tensor): Offset of the similarity, one element.
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.
        denominator (str): 'similarity' as above, or 'count' for the number of
            points of the cluster plus one.

    Returns:
        Tensor: (B, H', W', E, D).
    """
    x, v = regions.split(features, rows, cols), regions.split(values, rows, cols)
    value_centers = pool(v, rows, cols)
    s = similarity(x, alpha, beta, rows, cols)
    mask = torch.zeros_like(s).scatter_(-2, s.argmax(-2, keepdim=True), 1)
    valid = regions.valid_points(rows, cols)
    if valid is not None:
        mask = mask * valid[:, None, None, :]
    s = s * mask
    weight = (s if denominator == 'similarity' else mask).sum(-1, keepdim=True)
    s = s.unsqueeze(-1)  # (B, regions, E, M, N, 1)
    g = ((v.unsqueeze(-3) * s).sum(-2) + value_centers) / (weight + 1)
    out = (g.unsqueeze(-2) * s).sum(-3)
    return regions.merge(out, rows, cols)
