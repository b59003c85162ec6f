"""The block of Context Cluster and its two halves."""

import torch
import torch.nn.functional as F
from torch import nn

from coc_mm.models.layers.group_norm import GroupNorm1
from coc_mm.models.layers.shortcuts import can_bypass
from coc_mm.ops import context_cluster_packed
from coc_mm.ops.backends import linear_at_centers
from coc_mm.ops.backends.cpu_mixer import residual_mixer
from coc_mm.ops.backends.cpu_mlp import MLPWeights, residual_mlp
from coc_mm.ops.backends.linear_at_centers import MixerSettings, MixerWeights
from coc_mm.ops.functional import ClusterSettings, uses_matmul


class ContextClusterMixer(nn.Module):
    """Exchange features within clusters of similar points.

    Both spaces come from one projection; between that and the projection back stands the operator,
    :func:`coc_mm.ops.context_cluster`, with the arguments of the same names.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        head_dim: int,
        proposals: tuple[int, int] = (2, 2),
        folds: tuple[int, int] = (1, 1),
        drop_rate: float = 0.0,
        denominator: str = 'similarity',
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.proposals = proposals
        self.folds = folds
        self.denominator = denominator
        self.backend = backend
        inner = num_heads * head_dim
        self.in_proj = nn.Linear(embed_dims, 2 * inner)  # similarity space, value space
        self.out_proj = nn.Linear(inner, embed_dims)
        self.sim_alpha = nn.Parameter(torch.ones(1))
        self.sim_beta = nn.Parameter(torch.zeros(1))
        self.drop = nn.Dropout(drop_rate)

    @property
    def settings(self) -> ClusterSettings:
        """What the operator is asked for."""
        return ClusterSettings(self.proposals, self.folds, self.denominator, self.backend)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map points (B, H, W, C) into the similarity and the value space, (B, H, W, E, D) each."""
        return self._project(x).unbind(-3)

    def _project(self, x):
        return self.in_proj(x).unflatten(-1, (2, self.num_heads, self.head_dim))

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        """Everything before the output projection, (B, H, W, C) to (B, H, W, E * D)."""
        x = self._project(x)
        return context_cluster_packed(x, self.sim_alpha, self.sim_beta, *self.settings).flatten(-2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix a map (B, H, W, embed_dims)."""
        return self.drop(self.out_proj(self.mix(x)))


class MLP(nn.Module):
    """Linear, GELU, linear, applied to every point; dropout after each of the two layers."""

    def __init__(self, embed_dims: int, hidden_dims: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Everything before the second layer, (..., embed_dims) to (..., hidden_dims)."""
        return self.drop(self.act(self.fc1(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform points (..., embed_dims)."""
        return self.drop(self.fc2(self.hidden(x)))


class DropPath(nn.Module):
    """Stochastic depth: while training, leave whole images out and scale the others up."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop images of a batch (B, ...)."""
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        shape = (len(x), *[1] * (x.dim() - 1))
        return x.div(keep) * (keep + torch.rand(shape, dtype=x.dtype, device=x.device)).floor()

    def extra_repr(self) -> str:
        """Show the probability."""
        return f'drop_prob={self.drop_prob}'


class ContextClusterBlock(nn.Module):
    """``x + drop_path(scale * mixer(norm(x)))``, then the same with the MLP; scale 0 is none."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        head_dim: int,
        mlp_ratio: float,
        proposals: tuple[int, int] = (2, 2),
        folds: tuple[int, int] = (1, 1),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        denominator: str = 'similarity',
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm1(embed_dims)
        self.mixer = ContextClusterMixer(
            embed_dims, num_heads, head_dim, proposals, folds, drop_rate, denominator, backend
        )
        self.norm2 = GroupNorm1(embed_dims)
        self.mlp = MLP(embed_dims, int(embed_dims * mlp_ratio), drop_rate)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.layer_scale1: nn.Parameter | None = None
        self.layer_scale2: nn.Parameter | None = None
        if layer_scale_init_value > 0:
            value = torch.full((embed_dims,), float(layer_scale_init_value))
            self.layer_scale1 = nn.Parameter(value.clone())
            self.layer_scale2 = nn.Parameter(value)

    @torch.no_grad()
    def fold(self) -> None:
        """Put norms and layer scales into the linear layers beside them: for inference, in place.

        Layers that are not plain (adapted, quantized) stay as they are, with what is beside them.
        """
        mixer, mlp = self.mixer, self.mlp
        for norm, linear in ((self.norm1, mixer.in_proj), (self.norm2, mlp.fc1)):
            if type(linear) is nn.Linear:
                linear.bias.add_(linear.weight @ norm.bias)
                linear.weight.mul_(norm.weight)
                norm.register_parameter('weight', None)
                norm.register_parameter('bias', None)
        for name, linear in (('layer_scale1', mixer.out_proj), ('layer_scale2', mlp.fc2)):
            scale = getattr(self, name)
            if type(linear) is nn.Linear and scale is not None:
                linear.weight.mul_(scale[:, None])
                linear.bias.mul_(scale)
                setattr(self, name, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run on a map (B, H, W, embed_dims)."""
        return self._forward_mlp(self._forward_mixer(x))

    def _forward_mixer(self, x):
        mixer, norm, scale = self.mixer, self.norm1, self.layer_scale1
        if not can_bypass(x, (norm, mixer, self.drop_path), _CLASSES):
            return x + self.drop_path(_scaled(mixer(norm(x)), scale))
        out_weight, out_bias = _folded(mixer.out_proj, scale)
        exporting = torch.compiler.is_exporting()
        if not (self._can_tile(x, norm) and (exporting or _has_large_regions(x, mixer))):
            out = mixer.drop(F.linear(mixer.mix(norm(x)), out_weight, out_bias))
            return x + self.drop_path(out)
        weights = MixerWeights(
            *(norm.weight, norm.bias, mixer.in_proj.weight, mixer.in_proj.bias),
            *(out_weight, out_bias, mixer.sim_alpha, mixer.sim_beta),
        )
        alone = self._drops_paths()
        settings = MixerSettings(
            *(mixer.num_heads, mixer.proposals, mixer.folds, mixer.denominator, norm.eps),
            residual=not alone,
        )
        if exporting or (torch.compiler.is_compiling() and torch.is_grad_enabled()):
            return x + self.drop_path(linear_at_centers.forward(norm(x), weights, settings))
        out = residual_mixer(x, weights, settings)
        return x + self.drop_path(out) if alone else out

    def _forward_mlp(self, x):  # x is a map of its own, which may be written over
        mlp, norm, scale = self.mlp, self.norm2, self.layer_scale2
        if not can_bypass(x, (norm, mlp, self.drop_path), _CLASSES):
            return x + self.drop_path(_scaled(mlp(norm(x)), scale))
        weight2, bias2 = _folded(mlp.fc2, scale)
        traced = torch.compiler.is_compiling() and torch.is_grad_enabled()
        if traced or torch.compiler.is_exporting() or not self._can_tile(x, norm):
            return x + self.drop_path(mlp.drop(F.linear(mlp.hidden(norm(x)), weight2, bias2)))
        alone = self._drops_paths()
        weights = MLPWeights(
            *(norm.weight, norm.bias, mlp.fc1.weight, mlp.fc1.bias, weight2, bias2)
        )
        out = residual_mlp(x, weights, norm.eps, residual=not alone, inplace=not alone)
        return x + self.drop_path(out) if alone else out

    def _drops_paths(self):
        return self.training and not isinstance(self.drop_path, nn.Identity)

    def _can_tile(self, x, norm):
        """Whether a half may run tile by tile: on the CPU, in full precision, without dropout.

        The reference backend stands for the modules, one after the other.
        """
        return (
            x.device.type == 'cpu'
            and x.dtype in (torch.float32, torch.float64)
            and x.dtype == self.mixer.in_proj.weight.dtype
            and not torch.is_autocast_enabled('cpu')
            and not (self.training and self.mixer.drop.p)
            and uses_matmul(self.mixer.backend)
            and (norm.weight is not None or torch.compiler.is_exporting())
        )


_OURS = (ContextClusterMixer, MLP, GroupNorm1, DropPath)
_CLASSES = (*_OURS, nn.Linear, nn.GELU, nn.Dropout, nn.Identity)


def _scaled(x, scale):
    return x if scale is None else x * scale


def _folded(linear, scale):
    """Weight and bias with the layer scale in them: C x C' products, not one per point."""
    if scale is None:
        return linear.weight, linear.bias
    return linear.weight * scale[:, None], linear.bias * scale


def _has_large_regions(x, mixer):
    """Whether regions hold so many points that projecting values at the centers is less work."""
    (height, width), (rows, cols) = x.shape[1:3], mixer.folds
    points = -(-height // min(rows, height)) * -(-width // min(cols, width))
    return points >= 4 * mixer.proposals[0] * mixer.proposals[1]
