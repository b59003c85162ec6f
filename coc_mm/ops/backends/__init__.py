"""The formulations of the operator, one file each."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch

from coc_mm.ops.regions import region_layout


class ClusterSettings(NamedTuple):
    """What one mixer asks of the operator, see :func:`context_cluster`."""

    proposals: tuple[int, int] = (2, 2)
    folds: tuple[int, int] = (1, 1)
    denominator: str = 'similarity'
    backend: str | None = None


def in_float32(forward: Callable) -> Callable:
    """Run a PyTorch formulation in float32 at least, whatever autocast says."""

    def run(features, values, alpha, beta, settings):
        dtype = torch.promote_types(features.dtype, torch.float32)
        layout = region_layout(features, settings.proposals, settings.folds)
        with no_autocast(features):
            inputs = (t.to(dtype) for t in (features, values, alpha, beta))
            return forward(*inputs, layout, settings.denominator).to(values.dtype)

    return run


def no_autocast(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Switch autocast off, on devices that have it."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # 'meta'
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
