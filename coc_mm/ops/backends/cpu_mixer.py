"""``x + out_proj(context_cluster(in_proj(norm(x))))`` in pieces.

The mixer is linear in its values, so they need not be projected point by point:
with normalised points ``y``, similarity ``s`` and cluster ``m`` of a point,

    aggregate:  (sum of s v + v_center) / total  =  W_v (sum of s y + y_center) / total + b_v
    dispatch:   W_o (s g_m) + b_o  =  s (W_o g_m) + b_o

which projects one row per center where the textbook projects every point, twice. What
is left per point are the features that decide its cluster, and weighted sums of rows
(of the points of a cluster; of the clusters of a point), which are embedding bags.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from coc_mm.ops import functional as interface
from coc_mm.ops import regions
from coc_mm.ops.backends.cpu_norm import affine, moments, norm_backward
from coc_mm.ops.backends.cpu_tiles import (
    EPS,
    Clusters,
    Cut,
    aggregate,
    assign,
    by_head,
    read_points,
)


class MixerWeights(NamedTuple):
    """The tensors of one half of a block.

    Attributes:
        norm_weight (Tensor): (C,), scale of the norm.
        norm_bias (Tensor): (C,), its offset.
        in_weight (Tensor): (2 * E * D, C), the similarity space, then the value space.
        in_bias (Tensor): (2 * E * D,).
        out_weight (Tensor): (C, E * D).
        out_bias (Tensor): (C,).
        alpha (Tensor): Scale of the similarity, one element.
        beta (Tensor): Offset of the similarity, one element.
    """

    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    in_weight: torch.Tensor
    in_bias: torch.Tensor
    out_weight: torch.Tensor
    out_bias: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor


class MixerSetting(NamedTuple):
    """What is not a tensor.

    Attributes:
        eps (float): Added to the variance of the norm.
        heads (int): E.
        proposals (tuple[int, int]): Centers per region, (rows, columns).
        folds (tuple[int, int]): Regions, (rows, columns).
        denominator (str): 'similarity' or 'count'.
        residual (bool): Whether the input is added.
    """

    eps: float
    heads: int
    proposals: tuple[int, int]
    folds: tuple[int, int]
    denominator: str
    residual: bool


def residual_mixer(x: torch.Tensor, weights: MixerWeights, setting: MixerSetting) -> torch.Tensor:
    """Normalise, exchange features within clusters of points, add the input.

    Args:
        x (Tensor): (B, H, W, C), float32 or float64, on the CPU.
        weights (MixerWeights): In the dtype of ``x``.
        setting (MixerSetting): Everything else.

    Returns:
        Tensor: (B, H, W, C).
    """
    if torch.compiler.is_compiling():
        # One opaque operator compiles in no time and is as fast; gradients need the whole.
        if torch.is_grad_enabled():
            return _whole(x, weights, setting)
        eps, heads, proposals, folds, *rest = setting
        return _opaque(x, list(weights), eps, heads, list(proposals), list(folds), *rest)
    if not torch.is_grad_enabled():
        return _forward(x.contiguous(), weights, setting)[0]
    return _ResidualMixer.apply(x, *weights, setting)


def plain(x: torch.Tensor, w: MixerWeights, setting: MixerSetting) -> torch.Tensor:
    """The same in one piece, of operations that autograd knows."""
    y = F.group_norm(x.permute(0, 3, 1, 2), 1, w.norm_weight, w.norm_bias, setting.eps)
    y = F.linear(y.permute(0, 2, 3, 1), w.in_weight, w.in_bias)
    features, values = y.unflatten(-1, (2, setting.heads, -1)).unbind(-3)
    out = interface.context_cluster(
        features,
        values,
        w.alpha,
        w.beta,
        setting.proposals,
        setting.folds,
        setting.denominator,
        'fused',
    )
    out = F.linear(out.flatten(-2), w.out_weight, w.out_bias)
    return x + out if setting.residual else out


def _whole(x: torch.Tensor, w: MixerWeights, setting: MixerSetting) -> torch.Tensor:
    """The same in one piece with values projected at the centers alone, for compilers.

    Sums over clusters are matrix products with one-hot rows here, and pointwise steps are
    left to be fused.

    Args:
        x (Tensor): (B, H, W, C).
        w (MixerWeights): In the dtype of ``x``.
        setting (MixerSetting): Everything else.

    Returns:
        Tensor: (B, H, W, C).
    """
    y = F.group_norm(x.permute(0, 3, 1, 2), 1, w.norm_weight, w.norm_bias, setting.eps)
    rows, cols = (
        regions.axis(x.shape[1 + i], setting.folds[i], setting.proposals[i], x.device, x.dtype)
        for i in range(2)
    )
    y = regions.split(regions.pad(y.permute(0, 2, 3, 1).unsqueeze(3), rows, cols), rows, cols)
    y = y.squeeze(2)  # (B, R, N, C)
    pool = rows.pool[:, None, :, None, :, None] * cols.pool[None, :, None, :, None, :]
    center = pool.flatten(4, 5).flatten(2, 3).flatten(0, 1) @ y  # (B, R, M, C)
    heads = setting.heads
    (in_weight, value_weight), (in_bias, value_bias) = w.in_weight.chunk(2), w.in_bias.chunk(2)
    f, fc = (F.linear(t, in_weight, in_bias).unflatten(-1, (heads, -1)) for t in (y, center))
    z = torch.einsum('brned,brmed->brenm', f, F.normalize(fc, dim=-1) * w.alpha)
    z = z / torch.linalg.vector_norm(f, dim=-1).clamp_min(EPS).permute(0, 1, 3, 2).unsqueeze(-1)
    unique, valid = regions.unique_centers(rows, cols), regions.valid_points(rows, cols)
    if unique is not None:
        z = z.masked_fill(~unique[:, None, None], -torch.inf)
    z, index = z.max(-1, keepdim=True)
    one = (index == torch.arange(center.shape[2], device=x.device)).to(x.dtype)
    if valid is not None:
        one = one * valid[:, None, :, None]
    weight = one * torch.sigmoid(z + w.beta)  # (B, R, E, N, M)
    bag = weight.sum(3) + 1  # (B, R, E, M)
    total = bag if setting.denominator == 'similarity' else one.sum(3) + 1
    u = weight.transpose(3, 4).flatten(2, 3) @ y  # (B, R, E * M, C)
    u = (u.unflatten(2, (heads, -1)) + center.unsqueeze(2)) / total.unsqueeze(-1)
    g = torch.einsum('bremc,edc->bremd', u, value_weight.unflatten(0, (heads, -1)))
    g = g + (bag / total).unsqueeze(-1) * value_bias.unflatten(0, (heads, 1, -1))
    g = torch.einsum('bremd,ced->bremc', g, w.out_weight.unflatten(1, (heads, -1)))
    out = weight.permute(0, 1, 3, 2, 4).flatten(3, 4) @ g.flatten(2, 3) + w.out_bias
    out = regions.merge(out.unsqueeze(2), rows, cols).squeeze(3)
    out = regions.unpad(out, rows, cols)
    return x + out if setting.residual else out


@torch.library.custom_op(
    'coc_mm::residual_mixer',
    mutates_args=(),
    device_types='cpu',
    schema='(Tensor x, Tensor[] weights, float eps, int heads, int[] proposals, int[] folds, '
    'str denominator, bool residual) -> Tensor',
)
def _opaque(x, weights, eps, heads, proposals, folds, denominator, residual):
    setting = MixerSetting(eps, heads, tuple(proposals), tuple(folds), denominator, residual)
    return _forward(x.contiguous(), MixerWeights(*weights), setting)[0]


@_opaque.register_fake
def _(x, *args):
    return x.new_empty(x.shape)


def _forward(x, w, setting):
    """Return the output, and what the backward pass needs beside the arguments."""
    mean, rstd = moments(x, setting.eps)
    cut, heads = Cut(x, setting, w.out_weight.shape[1] * x.itemsize), by_head(w, setting.heads)
    scale, offset = (
        t.repeat_interleave(cut.rows.folds, 0)
        for t in affine(mean, rstd, w.norm_weight, w.norm_bias)
    )
    source = cut.spread(x)
    out = torch.empty_like(source)
    kept = []
    for piece in cut.pieces():
        valid, unique = cut.of(cut.valid, piece), cut.of(cut.unique, piece)
        p = read_points(source[piece], scale[piece], offset[piece], cut.of(cut.pool, piece), heads)
        s, cluster = assign(p, w.alpha, w.beta, valid, unique)
        clusters = Clusters(cluster, p.unit[..., 0].numel())
        _, g, _, _ = aggregate(p, clusters, s, valid, heads, setting.denominator)
        mixed = cut.back(clusters.spread(g @ heads.out, s).add_(w.out_bias), piece)
        if setting.residual:
            torch.add(source[piece], mixed, out=out[piece])
        else:
            out[piece] = mixed
        kept += [s, cluster.int()]
    return cut.join(out), mean, rstd, *kept


class _ResidualMixer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *args):
        w, setting = MixerWeights(*args[:-1]), args[-1]
        x = x.contiguous()
        out, *rest = _forward(x, w, setting)
        ctx.save_for_backward(x, *w, *rest)
        ctx.setting = setting
        return out

    @staticmethod
    def backward(ctx, grad):
        x, *rest = ctx.saved_tensors
        w, (mean, rstd), kept = MixerWeights(*rest[:8]), rest[8:10], rest[10:]
        setting = ctx.setting
        if torch.is_grad_enabled():  # create_graph=True: the gradient of this gradient is wanted
            inputs = (x, *w)
            wanted = [t for t in inputs if t.requires_grad]
            out = plain(x, w, setting)
            grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
            return (*(next(grads) if t.requires_grad else None for t in inputs), None)
        grad = grad.contiguous()
        cut, heads = (
            Cut(x, setting, w.out_weight.shape[1] * x.itemsize),
            by_head(w, setting.heads),
        )
        scale, offset = (
            t.repeat_interleave(cut.rows.folds, 0)
            for t in affine(mean, rstd, w.norm_weight, w.norm_bias)
        )
        source, above = cut.spread(x), cut.spread(grad)
        grad_y = torch.empty_like(source)
        sums = _Sums(w, heads)
        for i, piece in enumerate(cut.pieces()):
            valid = cut.of(cut.valid, piece)
            p = read_points(
                source[piece], scale[piece], offset[piece], cut.of(cut.pool, piece), heads
            )
            dy = above[piece].permute(0, 2, 1, 3, 4).reshape(p.y.shape)
            s, cluster = kept[2 * i], kept[2 * i + 1].long()
            out = _piece_backward(p, dy, s, cluster, w, heads, valid, setting.denominator, sums)
            grad_y[piece] = cut.back(out, piece)
        grad_y = cut.join(grad_y)
        grad_x, grad_norm_weight, grad_norm_bias = norm_backward(
            grad_y, x, mean, rstd, w.norm_weight
        )
        if setting.residual:
            grad_x = grad_x + grad
        return (grad_x, grad_norm_weight, grad_norm_bias, *sums.by_weight(grad), None)


class _Sums:
    """Gradients of the weights, summed over the pieces."""

    def __init__(self, w, heads):
        self.weight = torch.zeros_like(w.in_weight)
        self.bias = torch.zeros_like(w.in_bias)
        self.feature, self.value = self.weight.unflatten(0, (2, len(heads.value), -1))
        self.feature_bias, self.value_bias = self.bias.unflatten(0, (2, len(heads.value), -1))
        self.out = torch.zeros_like(heads.out)  # (E, D, C)
        self.alpha = torch.zeros_like(w.alpha)
        self.beta = torch.zeros_like(w.beta)

    def by_weight(self, grad):
        """Gradients in the order of :class:`MixerWeights`, those of the norm left out."""
        out = self.out.flatten(0, 1).t()
        return self.weight, self.bias, out, grad.sum((0, 1, 2)), self.alpha, self.beta


def _piece_backward(p, dy, s, cluster, w, heads, valid, denominator, sums):
    """Return the gradient of the normalised points (R * N, C) and add up those of the weights.

    Args:
        p (Points): The points.
        dy (Tensor): (R * N, C), gradient of what each point receives.
        s (Tensor): (E, R * N), similarities.
        cluster (Tensor): (E, R * N), clusters.
        w (MixerWeights): The weights.
        heads (Heads): The projections head by head.
        valid (Tensor | None): (R, N), False at padding.
        denominator (str): 'similarity' or 'count'.
        sums (_Sums): Gradients of the weights so far.

    Returns:
        Tensor: (R * N, C).
    """
    clusters = Clusters(cluster, p.unit[..., 0].numel())
    u, g, total, share = aggregate(p, clusters, s, valid, heads, denominator)

    # Dispatch: out = sum over heads of s (g W_o).
    grad_rows = clusters.gather(dy, s)  # of g W_o
    grad_g = grad_rows @ heads.out.transpose(1, 2)
    sums.out += g.transpose(1, 2) @ grad_rows
    # Aggregate: g = u W_v + share b_v, u = (sum of s y + center) / total.
    grad_u = (grad_g @ heads.value.transpose(1, 2)) / total
    sums.value += grad_g.transpose(1, 2) @ u
    sums.value_bias += (grad_g if share is None else grad_g * share).sum(1)
    if share is None:
        grad_bag = -(grad_u * u).sum(-1)
    else:
        grad_bag = ((grad_g * heads.value_bias).sum(-1, keepdim=True) / total).squeeze(-1)
    grad_y = clusters.spread(grad_u, s)
    grad_center = grad_u.sum(0)
    grad_s = clusters.pair(g @ heads.out, dy) + clusters.pair(grad_u, p.y)
    grad_s += grad_bag.flatten()[cluster]

    # s = sigmoid(beta + alpha cos); padded points have s = 0 and so no gradient.
    grad_z = grad_s * s * (1 - s)
    near = clusters.spread_own(p.unit, torch.ones_like(s))  # the center of each point
    cosine = (near * p.f).sum(-1).div_(p.norm)
    sums.beta += grad_z.sum()
    sums.alpha += (grad_z * cosine).sum()
    # cos = unit(f) . unit(center); the length of either does not matter.
    weight = grad_z * w.alpha / p.norm
    radial = torch.where(p.norm > EPS, weight * cosine / p.norm, 0)
    grad_unit = clusters.gather_own(p.f, weight)
    grad_f = near.mul_(weight[..., None]).sub_(p.f * radial[..., None])
    radial = (grad_unit * p.unit).sum(-1, keepdim=True)
    radial = torch.where(p.center_norm > EPS, radial, 0)
    grad_fc = (grad_unit - p.unit * radial) / p.center_norm

    # f = y W_f + b_f, of points and of centers.
    e = len(heads.feature)
    sums.feature += grad_f.transpose(1, 2) @ p.y.expand(e, -1, -1)
    sums.feature += grad_fc.transpose(1, 2) @ p.center.expand(e, -1, -1)
    sums.feature_bias += grad_f.sum(1) + grad_fc.sum(1)
    for head in range(e):
        grad_y.addmm_(grad_f[head], heads.feature[head].t())
        grad_center.addmm_(grad_fc[head], heads.feature[head].t())
    r, m, _ = p.pool.shape
    spread = p.pool.transpose(1, 2) @ grad_center.view(r, m, -1)
    return grad_y.add_(spread.flatten(0, 1))
