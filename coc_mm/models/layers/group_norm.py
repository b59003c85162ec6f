"""Normalisation of a channels-last map."""

import torch
import torch.nn.functional as F
from torch import nn

# The CPU's backward pass over channels-last memory, where the input's gradient is not asked for:
# seen with torch 2.4 and 2.5, no more with 2.14; those between are taken for the worse.
_CRASHES = tuple(map(int, torch.__version__.split('.')[:2])) < (2, 14)


class GroupNorm1(nn.GroupNorm):
    """Group normalisation with one group of a (B, H, W, C) map.

    Mean and variance are taken over all points and channels of an image, scale
    and offset are per channel, as ``GroupNorm(1, C)`` does on (B, C, H, W).

    Args:
        num_channels (int): C.
        eps (float): Added to the variance. Defaults to 1e-5.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(1, num_channels, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise.

        Args:
            x (Tensor): (B, H, W, C).

        Returns:
            Tensor: (B, H, W, C).
        """
        # A view: (B, C, H, W) in channels-last memory, which the kernels know.
        x = x.permute(0, 3, 1, 2)
        if _CRASHES and x.device.type == 'cpu':
            x = x.contiguous()
        x = F.group_norm(x, 1, self.weight, self.bias, self.eps)
        return x.permute(0, 2, 3, 1)
