"""The points of a piece of a map, their clusters, and sums over either."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, overload

import torch
import torch.nn.functional as F

from coc_mm.ops import regions

if TYPE_CHECKING:  # it imports this module
    from coc_mm.ops.backends.cpu_mixer import MixerSetting, MixerWeights

# Features of one piece, in bytes.
PIECE = 4 << 20
EPS = 1e-12  # of torch.nn.functional.normalize


class Heads(NamedTuple):
    """The projections, a matrix for each head: (E, C, D) and (E, 1, D), (E, D, C) back."""

    feature: torch.Tensor
    feature_bias: torch.Tensor
    value: torch.Tensor
    value_bias: torch.Tensor
    out: torch.Tensor


def by_head(w: 'MixerWeights', heads: int) -> Heads:
    """Cut the projections of a mixer's weights by heads.

    Args:
        w (MixerWeights): The weights.
        heads (int): E.

    Returns:
        Heads: Views of them.
    """
    weight = w.in_weight.unflatten(0, (2, heads, -1)).transpose(-1, -2)
    bias = w.in_bias.unflatten(0, (2, heads, 1, -1))
    out = w.out_weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
    return Heads(weight[0], bias[0], weight[1], bias[1], out)


class Cut:
    """How a map lies in rows of regions ('slabs'), which are handled some at a time."""

    def __init__(self, x: torch.Tensor, setting: 'MixerSetting', per_point: int) -> None:
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
            for t in (regions.valid_points(rows, cols), regions.unique_centers(rows, cols))
        )

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) as (slabs, rows, regions, columns, C), padded where it must be."""
        return regions.pad(x, self.rows, self.cols).reshape(self.shape)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`spread`."""
        x = x.view(-1, self.rows.folds * self.rows.size, *self.shape[2:])
        return regions.unpad(x.flatten(2, 3), self.rows, self.cols)

    def back(self, points: torch.Tensor, piece: slice) -> torch.Tensor:
        """Points (R * N, C) of a piece as the part of a map they are, (S, rows, ..., C)."""
        _, height, folds, width, c = self.shape
        return points.view(-1, folds, height, width, c).transpose(1, 2)

    def pieces(self) -> Iterator[slice]:
        """Yield ranges of slabs, each of about ``PIECE`` bytes."""
        for start in range(0, self.slabs, self.step):
            yield slice(start, min(start + self.step, self.slabs))

    @overload
    def of(self, table: torch.Tensor, piece: slice) -> torch.Tensor: ...

    @overload
    def of(self, table: None, piece: slice) -> None: ...

    def of(self, table: torch.Tensor | None, piece: slice) -> torch.Tensor | None:
        """The rows of a table (rows of regions, regions of a row, ...) that a piece meets."""
        if table is None:
            return None
        if table is self.pool and self.even:
            return table[0]
        return table[torch.arange(piece.start, piece.stop) % len(table)].flatten(0, 1)


class Points(NamedTuple):
    """The points of R regions and what follows from them alone."""

    y: torch.Tensor  # (R * N, C), normalised
    center: torch.Tensor  # (R * M, C), averages of them
    f: torch.Tensor  # (E, R * N, D), features
    norm: torch.Tensor  # (E, R * N), their lengths
    unit: torch.Tensor  # (E, R * M, D), features of centers, of length one
    center_norm: torch.Tensor  # (E, R * M, 1), lengths they had
    pool: torch.Tensor  # (R, M, N)


def read_points(
    x: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    pool: torch.Tensor,
    heads: Heads,
) -> Points:
    """Normalise, cut and project some slabs (S, rows, regions, columns, C)."""
    slabs, height, folds, width, c = x.shape
    y = x.new_empty(slabs, folds, height, width, c)
    scale, offset = (t[:, None, None, None] for t in (scale, offset))
    torch.addcmul(offset, x.permute(0, 2, 1, 3, 4), scale, out=y)
    r = slabs * folds
    pool = pool.expand(r, -1, -1)
    center = (pool @ y.view(r, -1, c)).view(-1, c)
    y = y.view(-1, c)
    f = project(y, heads.feature, heads.feature_bias)
    unit = project(center, heads.feature, heads.feature_bias)
    norm = torch.linalg.vector_norm(f, dim=-1)
    center_norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min_(EPS)
    return Points(y, center, f, norm.clamp_min_(EPS), unit / center_norm, center_norm, pool)


def project(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(P, C) or (E, P, C) to (E, P, D), head by head."""
    return torch.baddbmm(bias, rows.expand(len(weight), -1, -1), weight)


def assign(
    p: Points,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    valid: torch.Tensor | None,
    unique: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the similarity of each point, and its cluster counted over all regions and heads.

    Both (E, R * N). Neither the sigmoid nor the length of a point changes which center is
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


class Clusters:
    """Sums over the points of each cluster, and over the clusters of each point."""

    def __init__(self, cluster: torch.Tensor, number: int) -> None:
        self.cluster = cluster  # (E, P)
        self.number = number
        self.of_point = cluster.t().contiguous()
        flat = cluster.flatten()
        self.order = flat.argsort(stable=True)
        self.point = self.order % cluster.shape[1]
        self.begin = torch.bincount(flat, minlength=number).cumsum(0).roll(1)
        self.begin[0] = 0

    def total(self, weight: torch.Tensor) -> torch.Tensor:
        """Sum weights (E, P) over the points of each cluster: (clusters,)."""
        total = weight.new_zeros(self.number)
        return total.scatter_add_(0, self.cluster.flatten(), weight.flatten())

    def gather(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Sum (P, C) rows of the points of each cluster, weighted (E, P): (E, R * M, C)."""
        weight = weight.flatten()[self.order]
        out = bag(self.point, rows, weight, self.begin)
        return out.view(len(self.cluster), -1, rows.shape[-1])

    def gather_own(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The same of rows (E, P, D), each for its own head: (E, R * M, D)."""
        weight = weight.flatten()[self.order]
        return bag(self.order, rows.flatten(0, 1), weight, self.begin).view(
            len(rows), -1, rows.shape[-1]
        )

    def spread(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Sum (E, R * M, C) rows of the clusters of each point, weighted (E, P): (P, C)."""
        return bag(self.of_point, rows.flatten(0, 1), weight.t().contiguous())

    def spread_own(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Rows (E, R * M, D) of the cluster of each head of a point, weighted: (E, P, D)."""
        out = bag(self.cluster.view(-1, 1), rows.flatten(0, 1), weight.view(-1, 1))
        return out.view(*self.cluster.shape, -1)

    def pair(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Products of the rows of a point's clusters with its own (P, C): (E, P)."""
        points, heads = self.of_point.shape
        point = torch.arange(points, device=rows.device)
        # What the gradient of spread() with respect to its weights is, without the sums; torch
        # 2.4 and 2.5 cannot derive it for a table without a gradient.
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            *(others, rows.flatten(0, 1), self.of_point.flatten(), point * heads),
            *(point.repeat_interleave(heads), 0),  # 0: a sum
        )
        return products.view(points, heads).t()


def bag(
    index: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, begin: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum weighted rows of a table.

    Args:
        index (Tensor): (P, K) rows of each sum, or (K,) all of them one after the other.
        rows (Tensor): (any, C), the table.
        weight (Tensor): Like ``index``.
        begin (Tensor | None): (P,), where each sum begins in a flat ``index``. Defaults
            to None.

    Returns:
        Tensor: (P, C).
    """
    return F.embedding_bag(index, rows, begin, mode='sum', per_sample_weights=weight)


def aggregate(
    p: Points,
    clusters: Clusters,
    s: torch.Tensor,
    valid: torch.Tensor | None,
    heads: Heads,
    denominator: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the clusters' mean points (E, R * M, C), values (E, R * M, D) and divisors."""
    bag = clusters.total(s).view(len(s), -1, 1) + 1
    if denominator == 'similarity':
        total, share = bag, None
    else:
        one = torch.ones_like(s) if valid is None else valid.flatten().to(s.dtype).expand_as(s)
        total = clusters.total(one).view(len(s), -1, 1) + 1
        share = bag / total
    u = clusters.gather(p.y, s).add_(p.center).div_(total)
    bias = heads.value_bias if share is None else heads.value_bias * share
    return u, torch.baddbmm(bias, u, heads.value), total, share
