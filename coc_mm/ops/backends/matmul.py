"""The operator as matrix products, with its own backward pass.

Nothing larger than the points or than (points, centers) is ever alive: a
cluster's sum is a product with the one-hot assignment weighted by similarity,
and so is the way back. Any device and dtype.
"""

import torch

from coc_mm.ops import regions

EPS = 1e-12  # of torch.nn.functional.normalize


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

    Same contract and same results as
    :func:`coc_mm.ops.backends.reference.forward`.

    Args:
        features (Tensor): (B, H', W', E, D), padded points, similarity space.
        values (Tensor): (B, H', W', E, D), padded points, value space.
        alpha (Tensor): Scale of the similarity, one element.
        beta (Tensor): Offset of the similarity, one element.
        rows (Axis): The cut of the height.
        cols (Axis): The cut of the width.
        denominator (str): 'similarity' or 'count'.

    Returns:
        Tensor: (B, H', W', E, D).
    """
    x, v = regions.split(features, rows, cols), regions.split(values, rows, cols)
    b, r, e, n, d = x.shape
    x, v = x.reshape(b * r * e, n, d), v.reshape(b * r * e, n, d)
    # Where the folds divide the map every region is cut alike.
    even = rows.valid is None and cols.valid is None
    pool = _pool_weights(rows, cols, even)
    valid, unique = regions.valid_points(rows, cols), regions.unique_centers(rows, cols)
    if even:
        unique = None if unique is None else unique[:1]
        pool = pool.expand(b * r * e, -1, -1)
    else:
        pool, valid, unique = (
            None if t is None else _per_group(t, b, r, e) for t in (pool, valid, unique)
        )
    if torch.compiler.is_compiling():
        out = _cluster(x, v, alpha, beta, pool, valid, unique, denominator)[0]
    else:
        out = _Cluster.apply(x, v, alpha, beta, pool, valid, unique, denominator)
    return regions.merge(out.reshape(b, r, e, n, d), rows, cols)


def _pool_weights(rows, cols, even):
    of_rows, of_cols = (rows.pool[:1], cols.pool[:1]) if even else (rows.pool, cols.pool)
    pool = of_rows[:, None, :, None, :, None] * of_cols[None, :, None, :, None, :]
    f, g, p, q, h, w = pool.shape
    return pool.reshape(f * g, p * q, h * w)


def _per_group(x, b, r, e):
    shape = x.shape[1:]
    return x[None, :, None].expand(b, r, e, *shape).reshape(b * r * e, *shape)


def _cluster(x, v, alpha, beta, pool, valid, unique, denominator):
    """Return the output and what the backward pass needs, (G, N, ...) each."""
    center = pool @ x
    value_center = pool @ v
    center = center / torch.linalg.vector_norm(center, dim=-1, keepdim=True).clamp_min(EPS)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(EPS)
    s = (x @ center.transpose(1, 2)) / norm
    s = torch.sigmoid(beta + alpha * s)
    if unique is not None:
        s = s.masked_fill(~unique[:, None], -1)
    s, index = s.max(-1, keepdim=True)
    if valid is not None:
        s = s * valid[..., None]
    weight = s.new_zeros(*x.shape[:2], pool.shape[1]).scatter(-1, index, s)  # (G, N, M)
    total = _total(weight, index, valid, denominator)
    g = (weight.transpose(1, 2) @ v + value_center) / total
    return weight @ g, s, index, g, total


def _total(weight, index, valid, denominator):
    if denominator == 'count':
        one = torch.ones_like(index, dtype=weight.dtype)
        if valid is not None:
            one = one * valid[..., None]
        weight = torch.zeros_like(weight).scatter(-1, index, one)
    return weight.sum(1).unsqueeze(-1) + 1


class _Cluster(torch.autograd.Function):
    """The mixer of (G, N, D) points, G = images x regions x heads."""

    @staticmethod
    def forward(ctx, x, v, alpha, beta, pool, valid, unique, denominator):
        out, s, index, g, total = _cluster(x, v, alpha, beta, pool, valid, unique, denominator)
        ctx.save_for_backward(x, v, alpha, beta, pool, valid, unique, s, index, g, total)
        ctx.denominator = denominator
        return out

    @staticmethod
    def backward(ctx, grad):
        x, v, alpha, beta, pool, valid, unique, s, index, g, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient of this gradient is wanted
            out = _cluster(x, v, alpha, beta, pool, valid, unique, ctx.denominator)[0]
            inputs = [t for t in (x, v, alpha, beta) if t.requires_grad]
            found = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
            grads = [next(found) if t.requires_grad else None for t in (x, v, alpha, beta)]
            return (*grads, None, None, None, None)
        one_hot = s.new_zeros(*x.shape[:2], pool.shape[1])
        weight = one_hot.scatter(-1, index, s)

        # out = weight @ g
        grad_g = weight.transpose(1, 2) @ grad
        # g = (weight' v + value_center) / total; the gradient of the sum it divides.
        grad_g = grad_g / total
        grad_s = grad @ g.transpose(1, 2) + v @ grad_g.transpose(1, 2)
        if ctx.denominator == 'similarity':
            grad_s = grad_s - (grad_g * g).sum(-1).unsqueeze(1)
        grad_s = grad_s.gather(-1, index)
        grad_v = weight @ grad_g + pool.transpose(1, 2) @ grad_g

        # s = sigmoid(beta + alpha cos); padded points have s = 0 and so no gradient.
        center = pool @ x
        center_norm = torch.linalg.vector_norm(center, dim=-1, keepdim=True)
        unit_center = center / center_norm.clamp_min(EPS)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.clamp_min(EPS).reciprocal()
        grad_z = grad_s * s * (1 - s)
        cosine = (x @ unit_center.transpose(1, 2)).gather(-1, index) * inverse
        grad_alpha = (grad_z * cosine).sum()
        grad_beta = grad_z.sum()

        # cos = unit(x) . unit(center); the length of either does not matter.
        grad_cos = one_hot.scatter(-1, index, grad_z * alpha * inverse)  # (G, N, M)
        radial = grad_z * alpha * cosine * inverse.square()
        grad_x = grad_cos @ unit_center - x * torch.where(norm > EPS, radial, 0)
        grad_unit = grad_cos.transpose(1, 2) @ x
        radial = (grad_unit * unit_center).sum(-1, keepdim=True)
        grad_center = grad_unit - unit_center * torch.where(center_norm > EPS, radial, 0)
        grad_center = grad_center / center_norm.clamp_min(EPS)
        grad_x = grad_x + pool.transpose(1, 2) @ grad_center
        return (
            grad_x,
            grad_v,
            grad_alpha.reshape(alpha.shape),
            grad_beta.reshape(alpha.shape),
            None,
            None,
            None,
            None,
        )
