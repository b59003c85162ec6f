"""``x + out_proj(context_cluster(in_proj(norm(x))))`` in pieces.

The mixer is linear in its values, so they need not be projected point by point:
with normalised points ``y``, similarity ``s`` and cluster ``m`` of a point,

    aggregate:  (sum of s v + v_centre) / total  =  W_v (sum of s y + y_centre) / total + b_v
    dispatch:   W_o (s g_m) + b_o  =  s (W_o g_m) + b_o

which projects one row per centre where the textbook projects every point, twice. What
is left per point are the features that decide its cluster, and weighted sums of rows
(of the points of a cluster; of the clusters of a point), which are embedding bags.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from coc_mm.ops.context_cluster import interface, regions
from coc_mm.ops.cpu.norm import affine, moments, norm_backward

# Features of one piece, in bytes.
PIECE = 8 << 20
EPS = 1e-12  # of torch.nn.functional.normalize


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
        proposals (tuple[int, int]): Centres per region, (rows, columns).
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


def residual_mixer(x, weights, setting):
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
    return _ResidualMixer.apply(x, *weights, setting)


def plain(x, w, setting):
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


def _whole(x, w, setting):
    """The same in one piece with values projected at the centres alone, for compilers.

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
    centre = pool.flatten(4, 5).flatten(2, 3).flatten(0, 1) @ y  # (B, R, M, C)
    heads = setting.heads
    (in_weight, value_weight), (in_bias, value_bias) = w.in_weight.chunk(2), w.in_bias.chunk(2)
    f, fc = (F.linear(t, in_weight, in_bias).unflatten(-1, (heads, -1)) for t in (y, centre))
    z = torch.einsum('brned,brmed->brenm', f, F.normalize(fc, dim=-1) * w.alpha)
    z = z / torch.linalg.vector_norm(f, dim=-1).clamp_min(EPS).permute(0, 1, 3, 2).unsqueeze(-1)
    unique, valid = regions.unique_centres(rows, cols), regions.valid_points(rows, cols)
    if unique is not None:
        z = z.masked_fill(~unique[:, None, None], -torch.inf)
    z, index = z.max(-1, keepdim=True)
    one = (index == torch.arange(centre.shape[2], device=x.device)).to(x.dtype)
    if valid is not None:
        one = one * valid[:, None, :, None]
    weight = one * torch.sigmoid(z + w.beta)  # (B, R, E, N, M)
    bag = weight.sum(3) + 1  # (B, R, E, M)
    total = bag if setting.denominator == 'similarity' else one.sum(3) + 1
    u = weight.transpose(3, 4).flatten(2, 3) @ y  # (B, R, E * M, C)
    u = (u.unflatten(2, (heads, -1)) + centre.unsqueeze(2)) / total.unsqueeze(-1)
    g = torch.einsum('bremc,edc->bremd', u, value_weight.unflatten(0, (heads, -1)))
    g = g + (bag / total).unsqueeze(-1) * value_bias.unflatten(0, (heads, 1, -1))
    g = torch.einsum('bremd,ced->bremc', g, w.out_weight.unflatten(1, (heads, -1)))
    out = weight.permute(0, 1, 3, 2, 4).flatten(3, 4) @ g.flatten(2, 3) + w.out_bias
    out = regions.merge(out.unsqueeze(2), rows, cols).squeeze(3)
    out = regions.unpad(out, rows, cols)
    return x + out if setting.residual else out


class _Heads(NamedTuple):
    """The projections, a matrix for each head: (E, C, D) and (E, 1, D), (E, D, C) back."""

    feature: torch.Tensor
    feature_bias: torch.Tensor
    value: torch.Tensor
    value_bias: torch.Tensor
    out: torch.Tensor


def _by_head(w, heads):
    weight = w.in_weight.unflatten(0, (2, heads, -1)).transpose(-1, -2)
    bias = w.in_bias.unflatten(0, (2, heads, 1, -1))
    out = w.out_weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
    return _Heads(weight[0], bias[0], weight[1], bias[1], out)


class _Cut:
    """How a map lies in rows of regions ('slabs'), which are handled some at a time."""

    def __init__(self, x, setting, per_point):
        rows, cols = self.rows, self.cols = tuple(
            regions.axis(x.shape[1 + i], setting.folds[i], setting.proposals[i], x.device, x.dtype)
            for i in range(2)
        )
        self.slabs = x.shape[0] * rows.folds
        self.shape = (self.slabs, rows.size, cols.folds, cols.size, x.shape[3])
        self.step = max(1, PIECE // (rows.size * cols.folds * cols.size * per_point))
        grid = (rows.folds, cols.folds)
        self.even = rows.valid is None and cols.valid is None
        pool = rows.pool[:, None, :, None, :, None] * cols.pool[None, :, None, :, None, :]
        # Where the folds divide the map every region is cut alike.
        self.pool = pool[:1, :1] if self.even else pool
        self.pool = self.pool.flatten(4, 5).flatten(2, 3)  # (rows, columns of regions, M, N)
        self.valid, self.unique = (
            None if t is None else t.unflatten(0, grid)
            for t in (regions.valid_points(rows, cols), regions.unique_centres(rows, cols))
        )

    def spread(self, x):
        """(B, H, W, C) as (slabs, rows, regions, columns, C), padded where it must be."""
        return regions.pad(x, self.rows, self.cols).reshape(self.shape)

    def join(self, x):
        """Undo :meth:`spread`."""
        x = x.view(-1, self.rows.folds * self.rows.size, *self.shape[2:])
        return regions.unpad(x.flatten(2, 3), self.rows, self.cols)

    def back(self, points, piece):
        """Points (R * N, C) of a piece as the part of a map they are, (S, rows, ..., C)."""
        _, height, folds, width, c = self.shape
        return points.view(-1, folds, height, width, c).transpose(1, 2)

    def pieces(self):
        """Yield ranges of slabs, each of about ``PIECE`` bytes."""
        for start in range(0, self.slabs, self.step):
            yield slice(start, min(start + self.step, self.slabs))

    def of(self, table, piece):
        """The rows of a table (rows of regions, regions of a row, ...) that a piece meets."""
        if table is None:
            return None
        if table is self.pool and self.even:
            return table[0]
        return table[torch.arange(piece.start, piece.stop) % len(table)].flatten(0, 1)


class _Points(NamedTuple):
    """The points of R regions and what follows from them alone."""

    y: torch.Tensor  # (R * N, C), normalised
    centre: torch.Tensor  # (R * M, C), averages of them
    f: torch.Tensor  # (E, R * N, D), features
    norm: torch.Tensor  # (E, R * N), their lengths
    unit: torch.Tensor  # (E, R * M, D), features of centres, of length one
    centre_norm: torch.Tensor  # (E, R * M, 1), lengths they had
    pool: torch.Tensor  # (R, M, N)


def _points(x, scale, offset, pool, heads):
    """Normalise, cut and project some slabs (S, rows, regions, columns, C)."""
    slabs, height, folds, width, c = x.shape
    y = x.new_empty(slabs, folds, height, width, c)
    scale, offset = (t[:, None, None, None] for t in (scale, offset))
    torch.addcmul(offset, x.permute(0, 2, 1, 3, 4), scale, out=y)
    r = slabs * folds
    pool = pool.expand(r, -1, -1)
    centre = (pool @ y.view(r, -1, c)).view(-1, c)
    y = y.view(-1, c)
    f = _project(y, heads.feature, heads.feature_bias)
    unit = _project(centre, heads.feature, heads.feature_bias)
    norm = torch.linalg.vector_norm(f, dim=-1)
    centre_norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min_(EPS)
    return _Points(y, centre, f, norm.clamp_min_(EPS), unit / centre_norm, centre_norm, pool)


def _project(rows, weight, bias):
    """(P, C) or (E, P, C) to (E, P, D), head by head."""
    return torch.baddbmm(bias, rows.expand(len(weight), -1, -1), weight)


def _assign(p, alpha, beta, valid, unique):
    """Return the similarity of each point, and its cluster counted over all regions and heads.

    Both (E, R * N). Neither the sigmoid nor the length of a point changes which centre is
    the nearest.
    """
    (r, m, n), e, d = p.pool.shape, len(p.f), p.f.shape[-1]
    z = p.f.view(e * r, n, d) @ (p.unit * alpha).view(e * r, m, d).transpose(1, 2)
    if unique is not None:
        z.view(e, r, n, m).masked_fill_(~unique[:, None], -torch.inf)
    z, index = z.max(-1)
    s = torch.sigmoid(z.view(e, -1).div_(p.norm) + beta)
    if valid is not None:
        s = s * valid.flatten()
    index += torch.arange(0, e * r * m, m)[:, None]
    return s, index.view(e, -1)


class _Clusters:
    """Sums over the points of each cluster, and over the clusters of each point."""

    def __init__(self, cluster, number):
        self.cluster = cluster  # (E, P)
        self.number = number
        self.of_point = cluster.t().contiguous()
        flat = cluster.flatten()
        self.order = flat.argsort(stable=True)
        self.point = self.order % cluster.shape[1]
        self.begin = torch.bincount(flat, minlength=number).cumsum(0).roll(1)
        self.begin[0] = 0

    def total(self, weight):
        """Sum weights (E, P) over the points of each cluster: (clusters,)."""
        total = weight.new_zeros(self.number)
        return total.scatter_add_(0, self.cluster.flatten(), weight.flatten())

    def gather(self, rows, weight):
        """Sum (P, C) rows of the points of each cluster, weighted (E, P): (E, R * M, C)."""
        weight = weight.flatten()[self.order]
        out = _bag(self.point, rows, weight, self.begin)
        return out.view(len(self.cluster), -1, rows.shape[-1])

    def gather_own(self, rows, weight):
        """The same of rows (E, P, D), each for its own head: (E, R * M, D)."""
        weight = weight.flatten()[self.order]
        return _bag(self.order, rows.flatten(0, 1), weight, self.begin).view(
            len(rows), -1, rows.shape[-1]
        )

    def spread(self, rows, weight):
        """Sum (E, R * M, C) rows of the clusters of each point, weighted (E, P): (P, C)."""
        return _bag(self.of_point, rows.flatten(0, 1), weight.t().contiguous())

    def spread_own(self, rows, weight):
        """Rows (E, R * M, D) of the cluster of each head of a point, weighted: (E, P, D)."""
        out = _bag(self.cluster.view(-1, 1), rows.flatten(0, 1), weight.view(-1, 1))
        return out.view(*self.cluster.shape, -1)

    def pair(self, rows, others):
        """Products of the rows of a point's clusters with its own (P, C): (E, P)."""
        with torch.enable_grad():
            weight = rows.new_ones(self.of_point.shape, requires_grad=True)
            out = _bag(self.of_point, rows.detach().flatten(0, 1), weight)
        return torch.autograd.grad(out, weight, others)[0].t()


def _bag(index, rows, weight, begin=None):
    return F.embedding_bag(index, rows, begin, mode='sum', per_sample_weights=weight)


def _aggregate(p, clusters, s, valid, heads, denominator):
    """Return the clusters' mean points (E, R * M, C), values (E, R * M, D) and divisors."""
    bag = clusters.total(s).view(len(s), -1, 1) + 1
    if denominator == 'similarity':
        total, share = bag, None
    else:
        one = torch.ones_like(s) if valid is None else valid.flatten().to(s.dtype).expand_as(s)
        total = clusters.total(one).view(len(s), -1, 1) + 1
        share = bag / total
    u = clusters.gather(p.y, s).add_(p.centre).div_(total)
    bias = heads.value_bias if share is None else heads.value_bias * share
    return u, torch.baddbmm(bias, u, heads.value), total, share


@torch.library.custom_op('coc_mm::residual_mixer', mutates_args=(), device_types='cpu')
def _opaque(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    eps: float,
    heads: int,
    proposals: list[int],
    folds: list[int],
    denominator: str,
    residual: bool,
) -> torch.Tensor:
    setting = MixerSetting(eps, heads, tuple(proposals), tuple(folds), denominator, residual)
    return _forward(x.contiguous(), MixerWeights(*weights), setting)[0]


@_opaque.register_fake
def _(x, *args):
    return x.new_empty(x.shape)


def _forward(x, w, setting):
    """Return the output, and what the backward pass needs beside the arguments."""
    mean, rstd = moments(x, setting.eps)
    cut, heads = _Cut(x, setting, w.out_weight.shape[1] * x.itemsize), _by_head(w, setting.heads)
    scale, offset = (
        t.repeat_interleave(cut.rows.folds, 0)
        for t in affine(mean, rstd, w.norm_weight, w.norm_bias)
    )
    source = cut.spread(x)
    out = torch.empty_like(source)
    kept = []
    for piece in cut.pieces():
        valid, unique = cut.of(cut.valid, piece), cut.of(cut.unique, piece)
        p = _points(source[piece], scale[piece], offset[piece], cut.of(cut.pool, piece), heads)
        s, cluster = _assign(p, w.alpha, w.beta, valid, unique)
        clusters = _Clusters(cluster, p.unit[..., 0].numel())
        _, g, _, _ = _aggregate(p, clusters, s, valid, heads, setting.denominator)
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
            _Cut(x, setting, w.out_weight.shape[1] * x.itemsize),
            _by_head(w, setting.heads),
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
            p = _points(source[piece], scale[piece], offset[piece], cut.of(cut.pool, piece), heads)
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
        p (_Points): The points.
        dy (Tensor): (R * N, C), gradient of what each point receives.
        s (Tensor): (E, R * N), similarities.
        cluster (Tensor): (E, R * N), clusters.
        w (MixerWeights): The weights.
        heads (_Heads): The projections head by head.
        valid (Tensor | None): (R, N), False at padding.
        denominator (str): 'similarity' or 'count'.
        sums (_Sums): Gradients of the weights so far.

    Returns:
        Tensor: (R * N, C).
    """
    clusters = _Clusters(cluster, p.unit[..., 0].numel())
    u, g, total, share = _aggregate(p, clusters, s, valid, heads, denominator)

    # Dispatch: out = sum over heads of s (g W_o).
    grad_rows = clusters.gather(dy, s)  # of g W_o
    grad_g = grad_rows @ heads.out.transpose(1, 2)
    sums.out += g.transpose(1, 2) @ grad_rows
    # Aggregate: g = u W_v + share b_v, u = (sum of s y + centre) / total.
    grad_u = (grad_g @ heads.value.transpose(1, 2)) / total
    sums.value += grad_g.transpose(1, 2) @ u
    sums.value_bias += (grad_g if share is None else grad_g * share).sum(1)
    if share is None:
        grad_bag = -(grad_u * u).sum(-1)
    else:
        grad_bag = ((grad_g * heads.value_bias).sum(-1, keepdim=True) / total).squeeze(-1)
    grad_y = clusters.spread(grad_u, s)
    grad_centre = grad_u.sum(0)
    grad_s = clusters.pair(g @ heads.out, dy) + clusters.pair(grad_u, p.y)
    grad_s += grad_bag.flatten()[cluster]

    # s = sigmoid(beta + alpha cos); padded points have s = 0 and so no gradient.
    grad_z = grad_s * s * (1 - s)
    near = clusters.spread_own(p.unit, torch.ones_like(s))  # the centre of each point
    cosine = (near * p.f).sum(-1).div_(p.norm)
    sums.beta += grad_z.sum()
    sums.alpha += (grad_z * cosine).sum()
    # cos = unit(f) . unit(centre); the length of either does not matter.
    weight = grad_z * w.alpha / p.norm
    radial = torch.where(p.norm > EPS, weight * cosine / p.norm, 0)
    grad_unit = clusters.gather_own(p.f, weight)
    grad_f = near.mul_(weight[..., None]).sub_(p.f * radial[..., None])
    radial = (grad_unit * p.unit).sum(-1, keepdim=True)
    radial = torch.where(p.centre_norm > EPS, radial, 0)
    grad_fc = (grad_unit - p.unit * radial) / p.centre_norm

    # f = y W_f + b_f, of points and of centres.
    e = len(heads.feature)
    sums.feature += grad_f.transpose(1, 2) @ p.y.expand(e, -1, -1)
    sums.feature += grad_fc.transpose(1, 2) @ p.centre.expand(e, -1, -1)
    sums.feature_bias += grad_f.sum(1) + grad_fc.sum(1)
    for head in range(e):
        grad_y.addmm_(grad_f[head], heads.feature[head].t())
        grad_centre.addmm_(grad_fc[head], heads.feature[head].t())
    r, m, _ = p.pool.shape
    spread = p.pool.transpose(1, 2) @ grad_centre.view(r, m, -1)
    return grad_y.add_(spread.flatten(0, 1))
