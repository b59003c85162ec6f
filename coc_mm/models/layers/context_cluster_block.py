"""The block of Context Cluster and its two halves."""

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import nn

from coc_mm.models.layers.group_norm import GroupNorm1
from coc_mm.ops import context_cluster_packed
from coc_mm.ops.backends.cpu_mixer import MixerSetting, MixerWeights, residual_mixer
from coc_mm.ops.backends.cpu_mlp import residual_mlp
from coc_mm.ops.functional import uses_fused


class ContextClusterMixer(nn.Module):
    """Exchange features within clusters of similar points.

    Both spaces come from one projection; the operator between the projections
    is :func:`coc_mm.ops.context_cluster`.

    Args:
        embed_dims (int): Channels of a point.
        num_heads (int): Heads, E.
        head_dim (int): Channels of a head, D.
        proposals (tuple[int, int]): Centers per region, (rows, columns).
            Defaults to (2, 2).
        folds (tuple[int, int]): Regions, (rows, columns). Defaults to (1, 1).
        drop_rate (float): Dropout after the output projection. Defaults to 0.
        denominator (str): 'similarity' or 'count', see the operator. Defaults
            to 'similarity'.
        backend (str | None): The operator's backend. Defaults to None, the
            fastest that can run.
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

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map points into the similarity space and the value space.

        Args:
            x (Tensor): (B, H, W, embed_dims).

        Returns:
            tuple[Tensor, Tensor]: Both (B, H, W, E, D), views of one tensor.
        """
        return self._project(x).unbind(-3)

    def _project(self, x):
        return self.in_proj(x).unflatten(-1, (2, self.num_heads, self.head_dim))

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Mix.

        Args:
            x (Tensor): (B, H, W, embed_dims).
            scale (Tensor | None): (embed_dims,), multiplies the output; it
                rides on the projection. Defaults to None.

        Returns:
            Tensor: (B, H, W, embed_dims).
        """
        x = context_cluster_packed(
            self._project(x),
            self.sim_alpha,
            self.sim_beta,
            self.proposals,
            self.folds,
            self.denominator,
            self.backend,
        )
        return self.drop(_scaled_linear(self.out_proj, x.flatten(-2), scale))


class MLP(nn.Module):
    """Linear, GELU, linear, applied to every point.

    Args:
        embed_dims (int): Channels of a point.
        hidden_dims (int): Channels between the two layers.
        drop_rate (float): Dropout after each layer. Defaults to 0.
    """

    def __init__(self, embed_dims: int, hidden_dims: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Transform.

        Args:
            x (Tensor): (..., embed_dims).
            scale (Tensor | None): (embed_dims,), multiplies the output; it
                rides on the second layer. Defaults to None.

        Returns:
            Tensor: (..., embed_dims).
        """
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(_scaled_linear(self.fc2, x, scale))


class ContextClusterBlock(nn.Module):
    """``x + drop_path(scale * mixer(norm(x)))``, then the same with the MLP.

    Args:
        embed_dims (int): Channels of a point.
        num_heads (int): Heads of the mixer.
        head_dim (int): Channels of a head.
        mlp_ratio (float): Hidden channels of the MLP per channel.
        proposals (tuple[int, int]): Centers per region. Defaults to (2, 2).
        folds (tuple[int, int]): Regions. Defaults to (1, 1).
        drop_rate (float): Dropout. Defaults to 0.
        drop_path_rate (float): Stochastic depth. Defaults to 0.
        layer_scale_init_value (float): Start of the layer scale, 0 for none.
            Defaults to 1e-5.
        denominator (str): See the operator. Defaults to 'similarity'.
        backend (str | None): See the operator. Defaults to None.
    """

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block.

        Args:
            x (Tensor): (B, H, W, embed_dims).

        Returns:
            Tensor: (B, H, W, embed_dims).
        """
        return self._forward_mlp(
            self._forward_mixer(x)
        )  # a map of its own, which may be written over

    def _forward_mixer(self, x):
        mixer, norm, scale = self.mixer, self.norm1, self.layer_scale1
        if not (_worth_pieces(x, mixer) and self._in_pieces(x, norm, mixer)):
            return x + self.drop_path(mixer(norm(x), scale))
        weight, bias = _scaled(mixer.out_proj, scale)
        weights = MixerWeights(
            *(norm.weight, norm.bias, mixer.in_proj.weight, mixer.in_proj.bias),
            *(weight, bias, mixer.sim_alpha, mixer.sim_beta),
        )
        alone = self._drops_paths()
        setting = MixerSetting(
            *(norm.eps, mixer.num_heads, mixer.proposals, mixer.folds, mixer.denominator),
            residual=not alone,
        )
        out = residual_mixer(x, weights, setting)
        return x + self.drop_path(out) if alone else out

    def _forward_mlp(self, x):
        mlp, norm, scale = self.mlp, self.norm2, self.layer_scale2
        if not self._in_pieces(x, norm, mlp):
            return x + self.drop_path(mlp(norm(x), scale))
        alone = self._drops_paths()
        out = residual_mlp(
            *(x, norm.weight, norm.bias, norm.eps, mlp.fc1.weight, mlp.fc1.bias),
            *(*_scaled(mlp.fc2, scale), not alone, not alone),  # residual, own
        )
        return x + self.drop_path(out) if alone else out

    def _drops_paths(self):
        return self.training and not isinstance(self.drop_path, nn.Identity)

    def _in_pieces(self, x, *half):
        """Whether a half may run piece by piece: on the CPU, with nobody looking inside.

        The reference backend stands for the textbook, module after module.
        """
        if x.device.type != 'cpu' or not uses_fused(self.mixer.backend):
            return False
        if torch.jit.is_tracing() or _is_exporting():
            return False
        parts = [part for module in half for part in module.modules()]
        return (
            x.dtype in (torch.float32, torch.float64)
            and x.dtype == half[0].weight.dtype
            and not torch.is_autocast_enabled('cpu')
            and not (self.training and any(isinstance(p, nn.Dropout) and p.p for p in parts))
            # Not wrapped, sharded, quantized, adapted: such a module must be called itself.
            and all(type(p) in _PLAIN for p in parts)
            and not any(
                p._forward_hooks or p._forward_pre_hooks or p._backward_hooks for p in parts
            )
        )


# Since torch 2.7
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)
# Not a set: the compiler of torch 2.4 cannot look into one.
_PLAIN = (ContextClusterMixer, MLP, GroupNorm1, nn.Linear, nn.GELU, nn.Dropout)


def _worth_pieces(x, mixer):
    """Whether regions hold so many points that projecting values at the centers is less work."""
    (height, width), (rows, cols) = x.shape[1:3], mixer.folds
    points = -(-height // min(rows, height)) * -(-width // min(cols, width))
    return points >= 4 * mixer.proposals[0] * mixer.proposals[1]


def _scaled_linear(linear, x, scale):
    # Scaling the weight costs C x C', scaling the output would cost another
    # pass over every point.
    if scale is None:
        return linear(x)
    return F.linear(x, *_scaled(linear, scale))


def _scaled(linear, scale):
    if scale is None:
        return linear.weight, linear.bias
    return linear.weight * scale[:, None], linear.bias * scale
