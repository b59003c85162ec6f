"""The operator as matrix products, with its own backward pass.

Nothing larger than the points or than (points, centers) is ever alive: a cluster's sum is a product
with the one-hot assignment weighted by similarity, and so is the way back. Any device and dtype.
"""

import torch

from coc_mm.ops.backends.reference import EPS, differentiable_grads
from coc_mm.ops.regions import RegionLayout, is_transformed


def forward(
    features: torch.Tensor,
    values: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    layout: RegionLayout,
    denominator: str,
) -> torch.Tensor:
    """Cluster, aggregate and dispatch, as :func:`coc_mm.ops.backends.reference.forward` does."""
    x, v = layout.split(features), layout.split(values)
    b, r, e, n, d = x.shape
    valid, center_mask = layout.valid, layout.center_mask
    if layout.even:
        pool = layout.pool.expand(b * r * e, -1, -1)
        center_mask = None if center_mask is None else center_mask[:1]
    else:

        def per_group(table):
            return table[None, :, None].expand(b, r, e, *table.shape[1:]).flatten(0, 2)

        pool = per_group(layout.pool)
        valid, center_mask = (None if t is None else per_group(t) for t in (valid, center_mask))
    inputs = (x.reshape(b * r * e, n, d), v.reshape(b * r * e, n, d), alpha, beta)
    tables = (pool, valid, center_mask, denominator)
    if torch.compiler.is_compiling() or is_transformed():
        out = _cluster(*inputs, *tables)[0]
    else:
        out = _Cluster.apply(*inputs, *tables)
    return layout.merge(out.reshape(b, r, e, n, d))


def _cluster(x, v, alpha, beta, pool, valid, center_mask, denominator):
    """Return the output and what the backward pass needs, (G, N, ...) each."""
    center = pool @ x
    value_center = pool @ v
    center = center / torch.linalg.vector_norm(center, dim=-1, keepdim=True).clamp_min(EPS)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(EPS)
    s = (x @ center.mT) / norm
    s = torch.sigmoid(beta + alpha * s)
    if center_mask is not None:
        s = s.masked_fill(~center_mask[:, None], -1)
    s, index = s.max(-1, keepdim=True)
    if valid is not None:
        s = s * valid[..., None]
    zeros = s.new_zeros(*x.shape[:2], pool.shape[1])
    weight = zeros.scatter(-1, index, s)  # (G, N, M)
    total = weight
    if denominator == 'count':
        one = torch.ones_like(s) if valid is None else valid[..., None].to(s.dtype)
        total = zeros.scatter(-1, index, one)
    total = total.sum(1).unsqueeze(-1) + 1
    g = (weight.mT @ v + value_center) / total
    return weight @ g, s, index, g, total


class _Cluster(torch.autograd.Function):
    """The operator on (G, N, D) points, G = images x regions x heads."""

    @staticmethod
    def forward(ctx, x, v, alpha, beta, pool, valid, center_mask, denominator):
        out, *saved = _cluster(x, v, alpha, beta, pool, valid, center_mask, denominator)
        ctx.save_for_backward(x, v, alpha, beta, pool, valid, center_mask, *saved)
        ctx.denominator = denominator
        return out

    @staticmethod
    def backward(ctx, grad):
        x, v, alpha, beta, pool, valid, center_mask, s, index, g, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient of this gradient is wanted

            def again(x, v, alpha, beta):
                return _cluster(x, v, alpha, beta, pool, valid, center_mask, ctx.denominator)[0]

            return (*differentiable_grads(again, (x, v, alpha, beta), grad), None, None, None, None)
        zeros = s.new_zeros(*x.shape[:2], pool.shape[1])
        weight = zeros.scatter(-1, index, s)

        # out = weight @ g
        grad_g = weight.mT @ grad
        # g = (weight' v + value_center) / total; the gradient of the sum it divides.
        grad_g = grad_g / total
        grad_s = grad @ g.mT + v @ grad_g.mT
        if ctx.denominator == 'similarity':
            grad_s = grad_s - (grad_g * g).sum(-1).unsqueeze(1)
        grad_s = grad_s.gather(-1, index)
        grad_v = weight @ grad_g + pool.mT @ grad_g

        # s = sigmoid(beta + alpha cos); padded points have s = 0 and so no gradient.
        center = pool @ x
        center_norm = torch.linalg.vector_norm(center, dim=-1, keepdim=True)
        unit_center = center / center_norm.clamp_min(EPS)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.clamp_min(EPS).reciprocal()
        grad_z = grad_s * s * (1 - s)
        cosine = (x @ unit_center.mT).gather(-1, index) * inverse
        grad_alpha = (grad_z * cosine).sum().reshape(alpha.shape)
        grad_beta = grad_z.sum().reshape(alpha.shape)

        # cos = unit(x) . unit(center); the length of either does not matter.
        grad_cos = zeros.scatter(-1, index, grad_z * alpha * inverse)  # (G, N, M)
        radial = grad_z * alpha * cosine * inverse.square()
        grad_x = grad_cos @ unit_center - x * torch.where(norm > EPS, radial, 0)
        grad_unit = grad_cos.mT @ x
        radial = (grad_unit * unit_center).sum(-1, keepdim=True)
        grad_center = grad_unit - unit_center * torch.where(center_norm > EPS, radial, 0)
        grad_center = grad_center / center_norm.clamp_min(EPS)
        grad_x = grad_x + pool.mT @ grad_center
        return grad_x, grad_v, grad_alpha, grad_beta, None, None, None, None
