"""What the tensors of a checkpoint must be to be the weights of a model."""

import re
from collections.abc import Mapping

import torch

__all__ = ['why_no_weights']

# Parameters, and what batch norms count with, are floating point in every model there is.
_FLOATING = re.compile(
    r'(?:^|\.)(?:weight|bias|running_mean|running_var|layer_scale_[12]|affine_(?:alpha|beta)|'
    r'(?:sim_)?(?:alpha|beta))$'
)


def why_no_weights(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Say why tensors cannot be the weights of a model.

    Args:
        weights (Mapping[str, Tensor]): By their names.

    Returns:
        str | None: The reason with the names of a few; None if nothing is wrong with them.
    """
    kinds = {
        'not dense': lambda _, x: x.layout != torch.strided or x.is_quantized or x.is_nested,
        'complex': lambda _, x: x.is_complex(),
        'of integers': lambda name, x: not x.is_floating_point() and bool(_FLOATING.search(name)),
    }
    for kind, is_of_it in kinds.items():
        found = [name for name, value in weights.items() if is_of_it(name, value)]
        if found:
            types = sorted({str(weights[name].dtype) for name in found})
            return f'{len(found)} tensors that are {kind} ({_few(found)}; {", ".join(types)[:80]})'
    broken = [name for name, value in weights.items() if _has_nan(value)]
    if broken:
        return f'NaN in {len(broken)} of {len(weights)} tensors ({_few(broken)})'
    return None


def _few(names: list[str]) -> str:
    return ', '.join(name[:80] for name in names[:3]) + (', ...' if len(names) > 3 else '')


def _has_nan(value: torch.Tensor) -> bool:
    """Whether there is one; an expanded value is looked at once."""
    if not value.is_floating_point() or value.is_meta or value.numel() == 0:
        return False
    for axis, stride in enumerate(value.stride()):
        if stride == 0:
            value = value.narrow(axis, 0, 1)
    if value.element_size() == 1:  # float8 knows no isnan
        value = value.to(torch.float32)
    return bool(value.isnan().any())
