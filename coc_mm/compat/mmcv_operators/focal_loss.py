"""Sigmoid and softmax focal loss (arXiv 1708.02002), in plain PyTorch.

The formulas are those of ``mmcv/ops/csrc/common/cuda/*_focal_loss_cuda_kernel.cuh``,
with their clamp of the logarithm's argument at the smallest normal float32: it
makes the loss of a hopelessly wrong logit end at 87.3 instead of growing on.
mmdet's ``FocalLoss`` calls them on CUDA tensors only; they work anywhere.
"""

import torch

from coc_mm.compat.mmcv_operators.precision import c_float, working_dtype

_SMALLEST = torch.finfo(torch.float32).tiny  # FLT_MIN


def sigmoid_focal_loss_forward(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    output: torch.Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Focal loss of every logit taken as a yes-or-no question.

    Args:
        input (Tensor): Logits, shape (N, C).
        target (Tensor): Labels, shape (N,), int64, at most C. A row whose label is
            not a column (C, the background, or negative) is negative throughout.
        weight (Tensor): Factor per label, shape (C,), or empty for none.
        output (Tensor): Output, shape (N, C).
        gamma (float): Exponent of the modulating factor.
        alpha (float): Weight of positives; negatives get ``1 - alpha``.

    Raises:
        ValueError: A label is greater than C, or has no weight in ``weight``.
    """
    _check_labels(input, target, weight)
    prob, positive, gamma, alpha = _sigmoid_terms(input, target, gamma, alpha)
    loss_positive = (1 - prob) ** gamma * prob.clamp(min=_SMALLEST).log()
    loss_negative = prob**gamma * (1 - prob).clamp(min=_SMALLEST).log()
    loss = -torch.where(positive, alpha * loss_positive, (1 - alpha) * loss_negative)
    output.copy_(_weighted(loss, target, weight))


def sigmoid_focal_loss_backward(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    grad_input: torch.Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Gradient of :func:`sigmoid_focal_loss_forward` with respect to the logits.

    Args:
        input (Tensor): Logits, shape (N, C).
        target (Tensor): Labels, shape (N,), int64.
        weight (Tensor): Factor per label, shape (C,), or empty for none.
        grad_input (Tensor): Output, shape (N, C): d output / d input, elementwise.
        gamma (float): Exponent of the modulating factor.
        alpha (float): Weight of positives.
    """
    prob, positive, gamma, alpha = _sigmoid_terms(input, target, gamma, alpha)
    log_prob = prob.clamp(min=_SMALLEST).log()
    log_rest = (1 - prob).clamp(min=_SMALLEST).log()
    grad_positive = (1 - prob) ** gamma * (1 - prob - gamma * prob * log_prob)
    grad_negative = prob**gamma * (gamma * (1 - prob) * log_rest - prob)
    grad = -torch.where(positive, alpha * grad_positive, (1 - alpha) * grad_negative)
    grad_input.copy_(_weighted(grad, target, weight))


def softmax_focal_loss_forward(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    output: torch.Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Focal loss of each row's own class.

    Args:
        input (Tensor): Probabilities (the softmax is mmcv's caller's), shape (N, C).
        target (Tensor): Labels, shape (N,), int64, below C; a negative label makes
            its row's loss 0.
        weight (Tensor): Factor per label, shape (C,), or empty for none.
        output (Tensor): Output, shape (N,).
        gamma (float): Exponent of the modulating factor.
        alpha (float): Factor of all.

    Raises:
        ValueError: A label is C or greater.
    """
    _check_labels(input, target, weight, background=False)
    prob, gamma, alpha = _own_class(input, target, gamma, alpha)
    loss = -alpha * (1 - prob) ** gamma * prob.clamp(min=_SMALLEST).log()
    output.copy_(_weighted(loss, target, weight).masked_fill(target < 0, 0))


def softmax_focal_loss_backward(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    buff: torch.Tensor,
    grad_input: torch.Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Gradient of :func:`softmax_focal_loss_forward` with respect to the logits.

    Args:
        input (Tensor): Probabilities, shape (N, C).
        target (Tensor): Labels, shape (N,), int64.
        weight (Tensor): Factor per label, shape (C,), or empty for none.
        buff (Tensor): Output, shape (N,): the factor common to a row.
        grad_input (Tensor): Output, shape (N, C).
        gamma (float): Exponent of the modulating factor.
        alpha (float): Factor of all.
    """
    prob, gamma, alpha = _own_class(input, target, gamma, alpha)
    rest = 1 - prob
    factor = gamma * rest ** (gamma - 1) * prob * prob.clamp(min=_SMALLEST).log()
    factor = alpha * (factor - rest**gamma)
    factor = _weighted(factor, target, weight).masked_fill(target < 0, 0)
    buff.copy_(factor)
    onehot = target[:, None] == torch.arange(input.size(1), device=input.device)
    grad_input.copy_(factor[:, None] * (onehot.to(factor.dtype) - input))


def _check_labels(input, target, weight, background=True):
    """Refuse labels that the compiled operators would read out of bounds."""
    classes = input.size(1)
    largest = classes if background and not weight.numel() else classes - 1
    if target.numel() and (found := int(target.max())) > largest:
        raise ValueError(
            f'focal loss: label {found} with {classes} classes'
            f'{" and a weight for each" if weight.numel() else ""}: the largest allowed '
            f'is {largest}.'
        )


def _sigmoid_terms(input, target, gamma, alpha):
    prob = input.to(working_dtype(input)).sigmoid()
    positive = target[:, None] == torch.arange(input.size(1), device=input.device)
    return prob, positive, c_float(gamma), c_float(alpha)


def _own_class(input, target, gamma, alpha):
    prob = input.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return prob.to(working_dtype(input)), c_float(gamma), c_float(alpha)


def _weighted(values, target, weight):
    if not weight.numel():
        return values
    # A negative label has no weight of its own and multiplies by the first; mmcv's
    # kernels read outside the array there.
    factor = weight[target.clamp(min=0)].to(values.dtype)
    return values * (factor[:, None] if values.dim() == 2 else factor)
