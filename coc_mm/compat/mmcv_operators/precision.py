"""In which precision the stand-in operators compute."""

import ctypes

import torch


def c_float(value: float) -> float:
    """Round a Python float as a C ``float`` argument does.

    Args:
        value (float): Any number.

    Returns:
        float: The nearest float32, e.g. 0.6000000238418579 for 0.6.
    """
    return ctypes.c_float(value).value


def working_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """Choose the type to compute in.

    Args:
        *tensors (Tensor): The operands.

    Returns:
        torch.dtype: float64 if any operand is, else float32.
    """
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32
