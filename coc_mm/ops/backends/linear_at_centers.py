"""The mixer with values projected at the centers alone, in few plain operators.

For compilers and exporters. The mixer is linear in its values, so they need not be projected point
by point; with points ``y``, their features ``f``, unit centers ``c`` and similarities ``s``:

    cos:        f_n . c_m  =  y_n . (W_f' c_m) + b_f . c_m     one product for all heads
    aggregate:  (sum of s v + v_center) / total  =  W_v (sum of s y + y_center) / total + b_v
    dispatch:   W_o (s g_m) + b_o  =  s (W_o g_m) + b_o

The features of a point are needed for its length alone. Sizes may be symbols, and nothing is
scattered: a cluster's sum is a matrix product with the one-hot assignment, which is a comparison.
Heads are never moved in front of the points, since runtimes copy whole maps for that.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from coc_mm.ops.backends.reference import EPS
from coc_mm.ops.regions import region_layout


class MixerWeights(NamedTuple):
    """The tensors of the mixer half of a block."""

    norm_weight: torch.Tensor  # (C,)
    norm_bias: torch.Tensor  # (C,)
    in_weight: torch.Tensor  # (2 * E * D, C), the similarity space, then the value space
    in_bias: torch.Tensor  # (2 * E * D,)
    out_weight: torch.Tensor  # (C, E * D)
    out_bias: torch.Tensor  # (C,)
    alpha: torch.Tensor  # (1,)
    beta: torch.Tensor  # (1,)


class MixerSettings(NamedTuple):
    """What of it is not a tensor."""

    heads: int
    proposals: tuple[int, int]
    folds: tuple[int, int]
    denominator: str
    eps: float  # of the norm
    residual: bool = True  # whether the input is added


def forward(y: torch.Tensor, w: MixerWeights, settings: MixerSettings) -> torch.Tensor:
    """Compute ``out_proj(context_cluster(in_proj(y)))`` of a normalised map (B, H, W, C)."""
    heads, denominator = settings.heads, settings.denominator
    layout = region_layout(y, settings.proposals, settings.folds)
    out_weight = w.out_weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
    (feature, value), (feature_bias, value_bias) = w.in_weight.chunk(2), w.in_bias.chunk(2)
    y = layout.split(y)  # (B, R, N, C)
    center = layout.pool @ y  # (B, R, M, C)
    index, s = _assign(y, center, feature, feature_bias, w, heads, layout)
    one = index.unsqueeze(-1) == torch.arange(center.shape[2], device=y.device)
    if layout.valid is not None:
        one = one & layout.valid[..., None, None]
    weight = torch.where(one, s.unsqueeze(-1), 0.0)  # (B, R, N, E, M)

    bag = weight.sum(2) + 1  # (B, R, E, M)
    total = bag if denominator == 'similarity' else one.to(y.dtype).sum(2) + 1
    u = (weight.flatten(3).mT @ y).unflatten(2, (heads, -1)) + center.unsqueeze(2)
    u = _heads_first(u / total.unsqueeze(-1)) @ value.unflatten(0, (heads, -1)).mT
    share = 1.0 if denominator == 'similarity' else _heads_first((bag / total).unsqueeze(-1))
    g = u + share * value_bias.view(heads, 1, -1)  # (E, B * R * M, D)
    sent = _by_region(g @ out_weight, center)
    return layout.merge(weight.flatten(3) @ sent + w.out_bias)


def _assign(y, center, weight, bias, w, heads, layout):
    """Return the center of each point and head and their similarity, (B, R, N, E) each."""
    length = F.linear(y, weight, bias).unflatten(-1, (heads, -1))
    length = length.square().sum(-1).clamp_min(EPS**2).sqrt()
    unit = _heads_first(F.linear(center, weight, bias).unflatten(-1, (heads, -1)).transpose(2, 3))
    norm = unit.square().sum(-1, keepdim=True).clamp_min(EPS**2).sqrt()
    unit = unit / norm * w.alpha  # (E, B * R * M, D)
    near = _by_region(unit @ weight.unflatten(0, (heads, -1)), center)  # (B, R, E * M, C)
    offset = _by_region(unit @ bias.view(heads, -1, 1), center)
    z = (y @ near.mT + offset.mT).unflatten(-1, (heads, -1))  # (B, R, N, E, M)
    if layout.center_mask is not None:
        z = z.masked_fill(~layout.center_mask[:, None, None], -torch.inf)
    # Neither the sigmoid nor the length of a point changes which center is the nearest.
    z, index = z.max(-1)
    return index, torch.sigmoid(z / length + w.beta)


def _heads_first(x):
    """(B, R, E, M, C) as (E, B * R * M, C)."""
    return x.flatten(0, 1).transpose(0, 1).flatten(1, 2)


def _by_region(x, center):
    """(E, B * R * M, C) as (B, R, E * M, C), with the B, R and M of ``center``."""
    b, r, m, _ = center.shape
    e, _, c = x.shape
    return x.reshape(e, b * r, m, c).transpose(0, 1).reshape(b, r, e * m, c)
