"""Normalisation over all points and channels of an image, folded into what follows."""

import torch


def moments(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and inverse standard deviation of each image.

    Args:
        x (Tensor): (B, H, W, C), contiguous.
        eps (float): Added to the variance.

    Returns:
        tuple[Tensor, Tensor]: (B,) each.
    """
    x = x.flatten(1, 2)
    mean = x.mean((1, 2))
    # var_mean is ten times slower here. Point by point first: a single sum over
    # 200 000 squares would lose digits in float32.
    square = torch.linalg.vector_norm(x, dim=2).square().mean(1) / x.shape[2]
    return mean, (square - mean.square()).clamp_min(0).add(eps).rsqrt()


def affine(
    mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the norm as one product and one sum per channel.

    Args:
        mean (Tensor): (B,).
        rstd (Tensor): (B,).
        weight (Tensor): (C,).
        bias (Tensor): (C,).

    Returns:
        tuple[Tensor, Tensor]: Scale and offset, (B, C) each.
    """
    scale = rstd[:, None] * weight
    return scale, bias - mean[:, None] * scale


def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of input, weight and bias of the norm.

    Args:
        grad (Tensor): (B, H, W, C), of its output.
        x (Tensor): (B, H, W, C), its input.
        mean (Tensor): (B,).
        rstd (Tensor): (B,).
        weight (Tensor): (C,).

    Returns:
        tuple[Tensor, Tensor, Tensor]: (B, H, W, C), (C,) and (C,).
    """
    b, h, w, c = x.shape
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
        grad.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        mean[:, None],
        rstd[:, None],
        weight,
        b,
        c,
        h * w,
        1,
        [True, True, True],
    )
    return grad_x.permute(0, 2, 3, 1), grad_weight, grad_bias
