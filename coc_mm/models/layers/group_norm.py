"""Normalisation of a channels-last map."""

import torch
import torch.nn.functional as F
from torch import nn


class GroupNorm1(nn.GroupNorm):
    """Group normalisation with one group of a (B, H, W, C) map.

    Mean and variance are taken over all points and channels of an image, scale and offset are per
    channel, as ``GroupNorm(1, C)`` does on (B, C, H, W).
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(1, num_channels, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise a map (B, H, W, C)."""
        if torch.compiler.is_exporting():  # plain operators
            # In two steps, since a runtime may add one number after the other: that loses digits.
            x = x - x.mean((1, 2), keepdim=True).mean(3, keepdim=True)
            variance = x.square().mean((1, 2), keepdim=True).mean(3, keepdim=True)
            x = x * (variance + self.eps).rsqrt()
            return x if self.weight is None else x * self.weight + self.bias
        # A view: (B, C, H, W) in channels-last memory, which the kernels know.
        x = F.group_norm(x.permute(0, 3, 1, 2), 1, self.weight, self.bias, self.eps)
        return x.permute(0, 2, 3, 1)
