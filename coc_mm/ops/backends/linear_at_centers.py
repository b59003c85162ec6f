"""A block of Context Cluster as a graph of few, plain operators, for other runtimes.

Sizes may stay symbols, and nothing is scattered: a cluster's sum is a matrix product with the
one-hot assignment, which is a comparison. Heads are never moved in front of the points, since
runtimes copy whole maps for that; with normalised points ``y``, their features ``f``, unit
centers ``c`` and similarities ``s``:

    cos:        f_n . c_m  =  y_n . (W_f' c_m) + b_f . c_m     one product for all heads
    aggregate:  (sum of s v + v_center) / total  =  W_v (sum of s y + y_center) / total + b_v
    dispatch:   W_o (s g_m) + b_o  =  s (W_o g_m) + b_o

The features of a point are needed for its length alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from coc_mm.ops import regions

EPS = 1e-12  # of torch.nn.functional.normalize


class Cut:
    """How maps of one size lie in regions.

    Args:
        x (Tensor): (B, H, W, C), a map; H and W at least the folds where they are symbols.
        proposals (tuple[int, int]): Centers per region, (rows, columns).
        folds (tuple[int, int]): Regions, (rows, columns).

    Attributes:
        pool (Tensor): (R, M, N), the averaging weights of centers.
        valid (Tensor | None): (R, N), False at padding.
        unique (Tensor | None): (R, M), False for a center that repeats an earlier one.
    """

    def __init__(self, x: torch.Tensor, proposals: tuple[int, int], folds: tuple[int, int]) -> None:
        self.rows, self.cols = rows, cols = tuple(
            _axis(x.shape[1 + i], folds[i], proposals[i], x) for i in range(2)
        )
        pool = rows.pool[:, None, :, None, :, None] * cols.pool[None, :, None, :, None, :]
        self.pool = pool.flatten(4, 5).flatten(2, 3).flatten(0, 1)
        self.valid = regions.valid_points(rows, cols)
        self.unique = regions.unique_centers(rows, cols)

    def split(self, y: torch.Tensor) -> torch.Tensor:
        """Cut a map (B, H, W, C) into regions, (B, R, N, C)."""
        rows, cols = self.rows, self.cols
        y = regions.pad(y, rows, cols)
        b, _, _, c = y.shape
        y = y.reshape(b, rows.folds, rows.size, cols.folds, cols.size, c).transpose(2, 3)
        return y.reshape(b, rows.folds * cols.folds, rows.size * cols.size, c)

    def merge(self, y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`split`; ``like`` is a map."""
        rows, cols = self.rows, self.cols
        b, c = like.shape[0], like.shape[3]
        y = y.reshape(b, rows.folds, cols.folds, rows.size, cols.size, c).transpose(2, 3)
        y = y.reshape(b, rows.folds * rows.size, cols.folds * cols.size, c)
        return regions.unpad(y, rows, cols)


class ExportableStage(nn.Module):
    """The blocks of a stage; all cut their maps alike.

    Args:
        blocks (list[tuple[ExportableMixer, ExportableMLP]]): In order.
        proposals (tuple[int, int]): Centers per region, (rows, columns).
        folds (tuple[int, int]): Regions, (rows, columns).
    """

    def __init__(
        self,
        blocks: 'list[tuple[ExportableMixer, ExportableMLP]]',
        proposals: tuple[int, int],
        folds: tuple[int, int],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(halves) for halves in blocks)
        self.proposals, self.folds = proposals, folds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run.

        Args:
            x (Tensor): (B, H, W, C).

        Returns:
            Tensor: (B, H, W, C).
        """
        cut = Cut(x, self.proposals, self.folds)
        blocks: Any = self.blocks  # pairs, of which nn.ModuleList knows no types
        for mixer, mlp in blocks:
            x = mlp(mixer(x, cut))
        return x


class ExportableMixer(nn.Module):
    """``x + out_proj(context_cluster(in_proj(norm(x))))`` for inference, on any device.

    Args:
        norm (nn.GroupNorm): Its scale and offset are folded into the projections.
        in_weight (Tensor): (2 * E * D, C), the similarity space, then the value space.
        in_bias (Tensor): (2 * E * D,).
        out_weight (Tensor): (C, E * D).
        out_bias (Tensor): (C,).
        alpha (Tensor): Scale of the similarity, one element.
        beta (Tensor): Offset of the similarity, one element.
        heads (int): E.
        denominator (str): 'similarity' or 'count'.
    """

    alpha: torch.Tensor
    beta: torch.Tensor
    feature: torch.Tensor
    feature_bias: torch.Tensor
    near: torch.Tensor
    near_bias: torch.Tensor
    out: torch.Tensor
    out_bias: torch.Tensor
    value: torch.Tensor
    value_bias: torch.Tensor

    def __init__(
        self,
        norm: nn.GroupNorm,
        in_weight: torch.Tensor,
        in_bias: torch.Tensor,
        out_weight: torch.Tensor,
        out_bias: torch.Tensor,
        alpha: torch.Tensor,
        beta: torch.Tensor,
        heads: int,
        denominator: str,
    ) -> None:
        super().__init__()
        self.eps, self.heads, self.denominator = norm.eps, heads, denominator
        weight, bias = fold_norm(norm, in_weight, in_bias)
        (feature, value), (feature_bias, value_bias) = weight.chunk(2), bias.chunk(2)
        constants = dict(
            feature=feature,
            feature_bias=feature_bias,
            near=feature.unflatten(0, (heads, -1)),  # (E, D, C)
            near_bias=feature_bias.view(heads, -1, 1),
            value=value.unflatten(0, (heads, -1)).transpose(1, 2),  # (E, C, D)
            value_bias=value_bias.view(heads, 1, -1),
            out=out_weight.unflatten(1, (heads, -1)).permute(1, 2, 0),  # (E, D, C)
            out_bias=out_bias,
            alpha=alpha,
            beta=beta,
        )
        for name, tensor in constants.items():
            self.register_buffer(name, tensor.detach().clone(memory_format=torch.contiguous_format))

    def forward(self, x: torch.Tensor, cut: Cut) -> torch.Tensor:
        """Run.

        Args:
            x (Tensor): (B, H, W, C).
            cut (Cut): Of a map of this size.

        Returns:
            Tensor: (B, H, W, C).
        """
        y = cut.split(normalise(x, self.eps))  # (B, R, N, C)
        center = cut.pool @ y  # (B, R, M, C)
        index, s = self._assign(y, center, cut.unique)
        if cut.valid is not None:
            s = s * cut.valid[..., None]
        one = index.unsqueeze(-1) == torch.arange(center.shape[2], device=x.device)
        weight = torch.where(one, s.unsqueeze(-1), 0.0)  # (B, R, N, E, M)
        sent = self._aggregate(y, center, weight, one, cut.valid)
        return x + cut.merge(weight.flatten(3) @ sent + self.out_bias, x)

    def _assign(self, y, center, unique):
        """Return the center of each point and head and their similarity, (B, R, N, E) each."""
        m = center.shape[2]
        length = F.linear(y, self.feature, self.feature_bias).unflatten(-1, (self.heads, -1))
        length = length.square().sum(-1).sqrt().clamp_min(EPS)
        unit = F.linear(center, self.feature, self.feature_bias)
        unit = unit.unflatten(-1, (self.heads, -1)).flatten(0, 2).transpose(0, 1)  # (E, BRM, D)
        norm = unit.square().sum(-1, keepdim=True).sqrt().clamp_min(EPS)
        unit = unit / norm * self.alpha
        near = _by_region(unit @ self.near, center)  # (B, R, E * M, C)
        offset = _by_region(unit @ self.near_bias, center)
        z = y @ near.transpose(2, 3) + offset.transpose(2, 3)
        z = z.unflatten(-1, (self.heads, m))  # (B, R, N, E, M)
        if unique is not None:
            z = z.masked_fill(~unique[:, None, None], -torch.inf)
        z, index = z.max(-1)
        return index, torch.sigmoid(z / length + self.beta)

    def _aggregate(self, y, center, weight, one, valid):
        """Return what each center sends to its points, (B, R, E * M, C)."""
        heads, m = self.heads, center.shape[2]
        bag = weight.sum(2) + 1  # (B, R, E, M)
        total = bag
        if self.denominator == 'count':
            one = one if valid is None else one & valid[..., None, None]
            total = one.to(y.dtype).sum(2) + 1
        u = (weight.flatten(3).transpose(2, 3) @ y).unflatten(2, (heads, m)) + center.unsqueeze(2)
        u = _heads_first(u / total.unsqueeze(-1))  # (E, B * R * M, C)
        bias = self.value_bias
        if self.denominator == 'count':
            bias = _heads_first((bag / total).unsqueeze(-1)) * bias
        return _by_region((u @ self.value + bias) @ self.out, center)


class ExportableMLP(nn.Module):
    """``x + fc2(gelu(fc1(norm(x))))`` for inference, on any device.

    Args:
        norm (nn.GroupNorm): Its scale and offset are folded into the first layer.
        weight1 (Tensor): (hidden, C).
        bias1 (Tensor): (hidden,).
        weight2 (Tensor): (C, hidden).
        bias2 (Tensor): (C,).
    """

    weight1: torch.Tensor
    bias1: torch.Tensor
    weight2: torch.Tensor
    bias2: torch.Tensor

    def __init__(
        self,
        norm: nn.GroupNorm,
        weight1: torch.Tensor,
        bias1: torch.Tensor,
        weight2: torch.Tensor,
        bias2: torch.Tensor,
    ) -> None:
        super().__init__()
        self.eps = norm.eps
        weight1, bias1 = fold_norm(norm, weight1, bias1)
        constants = dict(weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2)
        for name, tensor in constants.items():
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run.

        Args:
            x (Tensor): (B, H, W, C).

        Returns:
            Tensor: (B, H, W, C).
        """
        hidden = F.gelu(F.linear(normalise(x, self.eps), self.weight1, self.bias1))
        return x + F.linear(hidden, self.weight2, self.bias2)


def fold_norm(
    norm: nn.GroupNorm, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a norm's scale and offset into the linear layer after it; its mean stays outside.

    Args:
        norm (nn.GroupNorm): Over C channels.
        weight (Tensor): (C', C).
        bias (Tensor): (C',).

    Returns:
        tuple[Tensor, Tensor]: Weight and bias of the layer.
    """
    return weight * norm.weight, bias + weight @ norm.bias


def normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Bring all points and channels of an image to mean 0 and variance 1.

    Args:
        x (Tensor): (B, H, W, C).
        eps (float): Added to the variance.

    Returns:
        Tensor: (B, H, W, C).
    """
    # In two steps, since a runtime may add one number after the other: that loses digits.
    x = x - x.mean((1, 2), keepdim=True).mean(3, keepdim=True)
    variance = x.square().mean((1, 2), keepdim=True).mean(3, keepdim=True)
    return x * (variance + eps).rsqrt()


def _heads_first(x):
    """(B, R, E, M, C) as (E, B * R * M, C)."""
    return x.flatten(0, 1).transpose(0, 1).flatten(1, 2)


def _by_region(x, center):
    """(E, B * R * M, C) as (B, R, E * M, C), with the B, R and M of ``center``."""
    b, r, m, _ = center.shape
    e, _, c = x.shape
    return x.reshape(e, b * r, m, c).transpose(0, 1).reshape(b, r, e * m, c)


def _axis(length, folds, proposals, x):
    """The cut of an axis of any length from ``folds``, see :class:`regions.Axis`."""
    device = x.device
    if isinstance(length, int):
        return regions.axis(length, folds, proposals, device, x.dtype)
    size = length if folds == 1 else (length + folds - 1) // folds
    region = torch.arange(folds, device=device)
    start = region * length // folds
    count = (region + 1) * length // folds - start
    place = torch.arange(size, device=device)
    index = inverse = valid = unique = None
    if folds > 1:  # whether they divide the length is known when it runs
        valid = place < count[:, None]
        index = (start[:, None] + place).clamp(max=length - 1).flatten()
        point = torch.arange(length, device=device)
        region = ((point + 1) * folds - 1) // length
        inverse = region * size + point - start[region]
    center = torch.arange(proposals, device=device)
    first = center * count[:, None] // proposals
    stop = ((center + 1) * count[:, None] + proposals - 1) // proposals
    inside = (place >= first[..., None]) & (place < stop[..., None])
    pool = inside.to(x.dtype) / (stop - first)[..., None]
    if proposals > 1:  # a small region has fewer points than centers
        repeats = (first[:, 1:] == first[:, :-1]) & (stop[:, 1:] == stop[:, :-1])
        unique = torch.cat([torch.ones_like(repeats[:, :1]), ~repeats], dim=1)
    return regions.Axis(length, folds, size, index, inverse, valid, pool, unique)
