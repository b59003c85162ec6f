"""``x + out_proj(context_cluster(in_proj(norm(x))))`` on the CPU, tile by tile.

Values are projected at the centers alone, as :mod:`coc_mm.ops.backends.linear_at_centers` derives:
one row per center where the reference projects every point, twice. What is left per point are the
features that decide its cluster, and weighted sums of rows (of the points of a cluster; of the
clusters of a point), which are embedding bags.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from coc_mm.ops.backends import linear_at_centers
from coc_mm.ops.backends.cpu_mlp import affine, moments, norm_backward
from coc_mm.ops.backends.linear_at_centers import MixerSettings, MixerWeights
from coc_mm.ops.backends.reference import EPS, differentiable_grads
from coc_mm.ops.regions import region_layout

# Features of one tile, in bytes.
TILE_BYTES = 4 << 20


def residual_mixer(x: torch.Tensor, weights: MixerWeights, settings: MixerSettings) -> torch.Tensor:
    """Normalise each image of (B, H, W, C), mix points within clusters, add the input.

    All in float32 or float64.
    """
    if torch.compiler.is_compiling():  # one opaque operator compiles in no time; no gradients
        heads, proposals, folds, *rest = settings
        return _opaque(x, list(weights), heads, list(proposals), list(folds), *rest)
    if torch.is_grad_enabled():
        return _ResidualMixer.apply(x, *weights, settings)
    return _forward(x.contiguous(), weights, settings)[0]


@torch.library.custom_op(
    'coc_mm::residual_mixer',
    mutates_args=(),
    device_types='cpu',
    schema='(Tensor x, Tensor[] weights, int heads, int[] proposals, int[] folds, '
    'str denominator, float eps, bool residual) -> Tensor',
)
def _opaque(x, weights, heads, proposals, folds, *rest):
    settings = MixerSettings(heads, tuple(proposals), tuple(folds), *rest)
    return _forward(x.contiguous(), MixerWeights(*weights), settings)[0]


@_opaque.register_fake
def _(x, *args):
    return x.new_empty(x.shape)


def _forward(x, w, settings):
    """Return the output, and what the backward pass needs beside the arguments."""
    mean, rstd = moments(x, settings.eps)
    tiling, projections = _Tiling(x, w, settings), _Projections.of(w, settings.heads)
    scale, offset = tiling.affine(mean, rstd, w)
    source = tiling.split(x)
    out = torch.empty_like(source)
    kept = []
    for tile in tiling.tiles:
        valid, center_mask, pool = tiling.tables(tile)
        p = _read_points(source[tile], scale[tile], offset[tile], pool, projections)
        s, cluster = _assign(p, w.alpha, w.beta, valid, center_mask)
        clusters = _Clusters(cluster, p.unit[..., 0].numel())
        _, g, _, _ = _aggregate(p, clusters, s, valid, projections, settings.denominator)
        mixed = tiling.lay_out(clusters.spread(g @ projections.out, s).add_(w.out_bias))
        if settings.residual:
            torch.add(source[tile], mixed, out=out[tile])
        else:
            out[tile] = mixed
        kept += [s, cluster.int()]
    return tiling.merge(out), mean, rstd, *kept


class _ResidualMixer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *args):
        w, settings = MixerWeights(*args[:-1]), args[-1]
        x = x.contiguous()
        out, *saved = _forward(x, w, settings)
        ctx.save_for_backward(x, *w, *saved)
        ctx.settings = settings
        return out

    @staticmethod
    def backward(ctx, grad):
        x, *rest = ctx.saved_tensors
        w, (mean, rstd), kept = MixerWeights(*rest[:8]), rest[8:10], rest[10:]
        settings = ctx.settings
        if torch.is_grad_enabled():  # create_graph=True: the gradient of this gradient is wanted

            def again(x, *weights):
                return _whole(x, MixerWeights(*weights), settings)

            return (*differentiable_grads(again, (x, *w), grad), None)
        grad = grad.contiguous()
        tiling, projections = _Tiling(x, w, settings), _Projections.of(w, settings.heads)
        scale, offset = tiling.affine(mean, rstd, w)
        source, above = tiling.split(x), tiling.split(grad)
        grad_y = torch.empty_like(source)
        sums = _Sums(w, projections)
        for i, tile in enumerate(tiling.tiles):
            valid, _, pool = tiling.tables(tile)
            p = _read_points(source[tile], scale[tile], offset[tile], pool, projections)
            dy = above[tile].permute(0, 2, 1, 3, 4).reshape(p.y.shape)
            s, cluster = kept[2 * i], kept[2 * i + 1].long()
            clusters = _Clusters(cluster, p.unit[..., 0].numel())
            mixed = _aggregate(p, clusters, s, valid, projections, settings.denominator)
            out = _tile_backward(p, dy, s, clusters, mixed, w.alpha, projections, sums)
            grad_y[tile] = tiling.lay_out(out)
        grad_x, *grad_norm = norm_backward(tiling.merge(grad_y), x, mean, rstd, w.norm_weight)
        if settings.residual:
            grad_x = grad_x + grad
        grad_out = (sums.out.flatten(0, 1).t(), grad.sum((0, 1, 2)))
        return (grad_x, *grad_norm, sums.weight, sums.bias, *grad_out, sums.alpha, sums.beta, None)


def _whole(x, w, settings):
    """The same of operations that autograd knows."""
    y = F.group_norm(x.permute(0, 3, 1, 2), 1, w.norm_weight, w.norm_bias, settings.eps)
    out = linear_at_centers.forward(y.permute(0, 2, 3, 1), w, settings)
    return x + out if settings.residual else out


class _Sums:
    """Gradients of the weights, summed over the tiles."""

    def __init__(self, w, projections):
        heads = len(projections.value)
        self.weight, self.bias = torch.zeros_like(w.in_weight), torch.zeros_like(w.in_bias)
        self.feature, self.value = self.weight.unflatten(0, (2, heads, -1))
        self.feature_bias, self.value_bias = self.bias.unflatten(0, (2, heads, -1))
        self.out = torch.zeros_like(projections.out)  # (E, D, C)
        self.alpha, self.beta = torch.zeros_like(w.alpha), torch.zeros_like(w.beta)


def _tile_backward(p, dy, s, clusters, mixed, alpha, projections, sums):
    """Return the gradient of the normalised points (R * N, C), add up those of the weights.

    ``dy`` (R * N, C) is that of what each point receives, ``s`` (E, R * N) the similarities,
    ``mixed`` what :func:`_aggregate` returned.
    """
    u, g, total, share = mixed
    # Dispatch: out = sum over heads of s (g W_o).
    grad_rows = clusters.gather(dy, s)  # of g W_o
    grad_g = grad_rows @ projections.out.mT
    sums.out += g.mT @ grad_rows
    # Aggregate: g = u W_v + share b_v, u = (sum of s y + center) / total.
    grad_u = (grad_g @ projections.value.mT) / total
    sums.value += grad_g.mT @ u
    sums.value_bias += (grad_g if share is None else grad_g * share).sum(1)
    if share is None:
        grad_bag = -(grad_u * u).sum(-1)
    else:
        grad_bag = ((grad_g * projections.value_bias).sum(-1, keepdim=True) / total).squeeze(-1)
    grad_y = clusters.spread(grad_u, s)
    grad_center = grad_u.sum(0)
    grad_s = clusters.products(g @ projections.out, dy) + clusters.products(grad_u, p.y)
    grad_s += grad_bag.flatten()[clusters.cluster]

    # s = sigmoid(beta + alpha cos); padded points have s = 0 and so no gradient.
    grad_z = grad_s * s * (1 - s)
    near = clusters.spread_by_head(p.unit, torch.ones_like(s))  # the center of each point
    cosine = (near * p.f).sum(-1).div_(p.norm)
    sums.beta += grad_z.sum()
    sums.alpha += (grad_z * cosine).sum()
    # cos = unit(f) . unit(center); the length of either does not matter.
    weight = grad_z * alpha / p.norm
    radial = torch.where(p.norm > EPS, weight * cosine / p.norm, 0)
    grad_unit = clusters.gather_by_head(p.f, weight)
    grad_f = near.mul_(weight[..., None]).sub_(p.f * radial[..., None])
    radial = (grad_unit * p.unit).sum(-1, keepdim=True)
    radial = torch.where(p.center_norm > EPS, radial, 0)
    grad_fc = (grad_unit - p.unit * radial) / p.center_norm

    # f = y W_f + b_f, of points and of centers.
    e = len(projections.feature)
    sums.feature += grad_f.mT @ p.y.expand(e, -1, -1)
    sums.feature += grad_fc.mT @ p.center.expand(e, -1, -1)
    sums.feature_bias += grad_f.sum(1) + grad_fc.sum(1)
    for head in range(e):
        grad_y.addmm_(grad_f[head], projections.feature[head].t())
        grad_center.addmm_(grad_fc[head], projections.feature[head].t())
    r, m, _ = p.pool.shape
    return grad_y.add_((p.pool.mT @ grad_center.view(r, m, -1)).flatten(0, 1))


class _Tiling:
    """A map as 'slabs', the rows of regions of its images, a few of which make a tile."""

    def __init__(self, x, w, settings):
        layout = self.layout = region_layout(x, settings.proposals, settings.folds)
        rows, cols = layout.rows, layout.cols
        slabs = x.shape[0] * rows.folds
        self.shape = (slabs, rows.size, cols.folds, cols.size, x.shape[3])
        per_slab = rows.size * cols.folds * cols.size * w.out_weight.shape[1] * x.itemsize
        step = max(1, TILE_BYTES // per_slab)
        self.tiles = [slice(i, min(i + step, slabs)) for i in range(0, slabs, step)]

    def affine(self, mean, rstd, w):
        """Scale and offset of the norm, (slabs, C) each."""
        pair = affine(mean, rstd, w.norm_weight, w.norm_bias)
        return tuple(t.repeat_interleave(self.layout.rows.folds, 0) for t in pair)

    def split(self, x):
        """(B, H, W, C) as (slabs, rows, regions, columns, C), padded where it must be."""
        return self.layout.pad(x).reshape(self.shape)

    def merge(self, x):
        """Undo :meth:`split`."""
        rows = self.layout.rows
        x = x.view(-1, rows.folds * rows.size, *self.shape[2:])
        return self.layout.unpad(x.flatten(2, 3))

    def lay_out(self, points):
        """Points (R * N, C) of a tile as the part of a map they are, (slabs, rows, ..., C)."""
        _, height, folds, width, c = self.shape
        return points.view(-1, folds, height, width, c).transpose(1, 2)

    def tables(self, tile):
        """``valid``, ``center_mask`` and ``pool`` of the regions in a tile."""
        rows, cols = self.layout.rows, self.layout.cols
        slabs = torch.arange(tile.start, tile.stop) % rows.folds

        def of(table):
            if table is None or len(table) == 1:  # even: all regions are divided alike
                return table
            return table.unflatten(0, (rows.folds, cols.folds))[slabs].flatten(0, 1)

        layout = self.layout
        return of(layout.valid), of(layout.center_mask), of(layout.pool)


class _Projections(NamedTuple):
    """The projections of a mixer, a matrix for each head."""

    feature: torch.Tensor  # (E, C, D)
    feature_bias: torch.Tensor  # (E, 1, D)
    value: torch.Tensor  # (E, C, D)
    value_bias: torch.Tensor  # (E, 1, D)
    out: torch.Tensor  # (E, D, C)

    @classmethod
    def of(cls, w, heads):
        """Views of the weights."""
        weight = w.in_weight.unflatten(0, (2, heads, -1)).mT
        bias = w.in_bias.unflatten(0, (2, heads, 1, -1))
        out = w.out_weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
        return cls(weight[0], bias[0], weight[1], bias[1], out)


class _Points(NamedTuple):
    """The points of R regions and what follows from them alone."""

    y: torch.Tensor  # (R * N, C), normalised
    center: torch.Tensor  # (R * M, C), averages of them
    f: torch.Tensor  # (E, R * N, D), features
    norm: torch.Tensor  # (E, R * N), their lengths
    unit: torch.Tensor  # (E, R * M, D), features of centers, of length one
    center_norm: torch.Tensor  # (E, R * M, 1), lengths they had
    pool: torch.Tensor  # (R, M, N)


def _read_points(x, scale, offset, pool, projections):
    """Normalise, split and project some slabs (S, rows, regions, columns, C)."""
    slabs, height, folds, width, c = x.shape
    y = x.new_empty(slabs, folds, height, width, c)
    scale, offset = (t[:, None, None, None] for t in (scale, offset))
    torch.addcmul(offset, x.permute(0, 2, 1, 3, 4), scale, out=y)
    pool = pool.expand(slabs * folds, -1, -1)
    center = (pool @ y.view(slabs * folds, -1, c)).view(-1, c)
    y = y.view(-1, c)
    heads = len(projections.feature)
    f, unit = (
        torch.baddbmm(projections.feature_bias, t.expand(heads, -1, -1), projections.feature)
        for t in (y, center)
    )
    norm = torch.linalg.vector_norm(f, dim=-1)
    center_norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min_(EPS)
    return _Points(y, center, f, norm.clamp_min_(EPS), unit / center_norm, center_norm, pool)


def _assign(p, alpha, beta, valid, center_mask):
    """Return the similarity of each point, and its cluster counted over all regions and heads.

    Both (E, R * N). Neither the sigmoid nor the length of a point changes the nearest center.
    """
    (r, m, n), e, d = p.pool.shape, len(p.f), p.f.shape[-1]
    z = p.f.view(e * r, n, d) @ (p.unit * alpha).view(e * r, m, d).mT
    if center_mask is not None:
        z.view(e, r, n, m).masked_fill_(~center_mask[:, None], -torch.inf)
    z, index = z.max(-1)
    s = torch.sigmoid(z.view(e, -1).div_(p.norm) + beta)
    if valid is not None:
        s = s * valid.flatten()
    index += torch.arange(0, e * r * m, m)[:, None]
    return s, index.view(e, -1)


class _Clusters:
    """Sums over the points of each cluster, and over the clusters of each point.

    ``cluster`` (E, P) is that of each point and head, counted over all heads: E * R * M of them.
    """

    def __init__(self, cluster, number):
        self.cluster, self.number = cluster, number
        self.of_point = cluster.t().contiguous()
        flat = cluster.flatten()
        self.order = flat.argsort(stable=True)
        self.point = self.order % cluster.shape[1]
        self.begin = torch.bincount(flat, minlength=number).cumsum(0).roll(1)
        self.begin[0] = 0

    def total(self, weight):
        """Sum weights (E, P) over the points of each cluster: (E, R * M, 1)."""
        total = weight.new_zeros(self.number)
        total.scatter_add_(0, self.cluster.flatten(), weight.flatten())
        return total.view(len(weight), -1, 1)

    def gather(self, rows, weight):
        """Sum (P, C) rows of the points of each cluster, weighted (E, P): (E, R * M, C)."""
        out = _bag(self.point, rows, weight.flatten()[self.order], self.begin)
        return out.view(len(self.cluster), -1, rows.shape[-1])

    def gather_by_head(self, rows, weight):
        """The same of rows (E, P, D), each for its own head: (E, R * M, D)."""
        out = _bag(self.order, rows.flatten(0, 1), weight.flatten()[self.order], self.begin)
        return out.view(len(rows), -1, rows.shape[-1])

    def spread(self, rows, weight):
        """Sum (E, R * M, C) rows of the clusters of each point, weighted (E, P): (P, C)."""
        return _bag(self.of_point, rows.flatten(0, 1), weight.t().contiguous())

    def spread_by_head(self, rows, weight):
        """Rows (E, R * M, D) of the cluster of each head of a point, weighted: (E, P, D)."""
        out = _bag(self.cluster.view(-1, 1), rows.flatten(0, 1), weight.view(-1, 1))
        return out.view(*self.cluster.shape, -1)

    def products(self, rows, others):
        """Products of the rows of a point's clusters with its own (P, C): (E, P)."""
        points, heads = self.of_point.shape
        point = torch.arange(points, device=rows.device)
        # The gradient of spread() with respect to its weights, without the sums.
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            *(others, rows.flatten(0, 1), self.of_point.flatten(), point * heads),
            *(point.repeat_interleave(heads), 0),  # 0: a sum
        )
        return products.view(points, heads).t()


def _bag(index, rows, weight, begin=None):
    """Sum weighted rows of a table: those of each row of ``index``, or from ``begin`` to begin."""
    return F.embedding_bag(index, rows, begin, mode='sum', per_sample_weights=weight)


def _aggregate(p, clusters, s, valid, projections, denominator):
    """Return the clusters' mean points (E, R * M, C), values (E, R * M, D), divisors, shares.

    The last two (E, R * M, 1): what sums are divided by, and how much of the values' bias that
    leaves; None where it is all of it.
    """
    total, share = clusters.total(s) + 1, None
    if denominator == 'count':
        one = torch.ones_like(s) if valid is None else valid.flatten().to(s.dtype).expand_as(s)
        bag, total = total, clusters.total(one) + 1
        share = bag / total
    u = clusters.gather(p.y, s).add_(p.center).div_(total)
    bias = projections.value_bias if share is None else projections.value_bias * share
    return u, torch.baddbmm(bias, u, projections.value), total, share
