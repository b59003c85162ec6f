"""From an image to points, and from many points to fewer."""

from functools import lru_cache

import torch
from torch import nn

from coc_mm.ops.regions import runs_eagerly


class PointReducer(nn.Module):
    """Merge neighbouring points into one by a strided convolution (arXiv 2303.01494, 3.2)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 0
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reduce a map (B, H, W, in_channels) to (B, H', W', out_channels)."""
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


def append_positions(image: torch.Tensor) -> torch.Tensor:
    """Append the two position channels of every point: (B, C, H, W) to (B, H, W, C + 2).

    Row ``i / (H - 1) - 0.5``, then column ``j / (W - 1) - 0.5`` (the released weights need this
    form). Each axis is cached per length, device and dtype.
    """
    b, _, h, w = image.shape
    build = _cached_positions if runs_eagerly() else _build_positions
    rows, cols = (build(n, image.device, image.dtype) for n in (h, w))
    positions = [t.expand(b, h, w, 1) for t in (rows[:, None, None], cols[:, None])]
    return torch.cat([image.permute(0, 2, 3, 1), *positions], dim=-1)


def _build_positions(length, device, dtype):
    # Half precision cannot tell the positions of a large image apart while dividing. A single row
    # has its position at the start, as i / (H - 1) would have it for i = 0.
    exact = torch.promote_types(dtype, torch.float32)
    place = torch.arange(length, device=device, dtype=exact)
    return (place / max(length - 1, 1) - 0.5).to(dtype)


@lru_cache(maxsize=512)
def _cached_positions(*args):
    # A tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False):
        return _build_positions(*args)
