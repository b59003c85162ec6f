"""Deformable convolution by torchvision's operator, deformable attention by mmcv's.

``deform_conv`` (arXiv 1703.06211) and ``modulated_deform_conv`` (arXiv 1811.11168)
agree with torchvision's ``deform_conv2d`` in the layout of the offsets, (y, x) per
kernel position, and in what lies outside the map. ``ms_deform_attn`` (arXiv
2010.04159) runs mmcv's own PyTorch version, which mmcv uses on the CPU alone.

Scratch buffers of the compiled operators (``columns``, ``ones``) stay untouched.
"""
# ruff: noqa: N803  (mmcv's argument names)

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)

from coc_mm.compat.mmcv_operators.precision import working_dtype


def deform_conv_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    output: torch.Tensor,
    columns: torch.Tensor,
    ones: torch.Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Convolve with a displacement per output position and kernel position.

    Args:
        input (Tensor): Shape (B, C, H, W).
        weight (Tensor): Shape (O, C / group, kH, kW).
        offset (Tensor): Shape (B, deformable_group * 2 * kH * kW, H', W').
        output (Tensor): Output, shape (B, O, H', W').
        columns (Tensor): Unused.
        ones (Tensor): Unused.
        kW (int): Kernel width; ``weight`` says it too.
        kH (int): Kernel height.
        dW (int): Stride in x.
        dH (int): Stride in y.
        padW (int): Padding in x.
        padH (int): Padding in y.
        dilationW (int): Dilation in x.
        dilationH (int): Dilation in y.
        group (int): Groups of channels.
        deformable_group (int): Groups of channels that share displacements.
        im2col_step (int): Unused.
    """
    layout = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_convolve(input, weight, offset, None, None, layout))


def deform_conv_backward_input(
    input: torch.Tensor,
    offset: torch.Tensor,
    gradOutput: torch.Tensor,
    gradInput: torch.Tensor,
    gradOffset: torch.Tensor,
    weight: torch.Tensor,
    columns: torch.Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of :func:`deform_conv_forward` for the map and the displacements.

    Args:
        input (Tensor): As in the forward pass, like all that is not named here.
        gradOutput (Tensor): Shape (B, O, H', W').
        gradInput (Tensor): Output, the shape of ``input``.
        gradOffset (Tensor): Output, the shape of ``offset``.
    """
    layout = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _convolve_backward(gradOutput, input, weight, offset, None, None, layout)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: torch.Tensor,
    offset: torch.Tensor,
    gradOutput: torch.Tensor,
    gradWeight: torch.Tensor,
    columns: torch.Tensor,
    ones: torch.Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` for the kernel.

    Args:
        input (Tensor): As in the forward pass, like all that is not named here.
        gradOutput (Tensor): Shape (B, O, H', W').
        gradWeight (Tensor): Output, the shape of ``weight``, to be added to.
        scale (float): Factor of what is added.
    """
    layout = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    # The gradient for the kernel does not depend on the kernel: zeros have its shape.
    weight = torch.zeros_like(gradWeight)
    grads = _convolve_backward(gradOutput, input, weight, offset, None, None, layout)
    gradWeight.add_(grads[1].to(gradWeight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    ones: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    output: torch.Tensor,
    columns: torch.Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Convolve with displacements, a factor per sample, and a bias.

    Args:
        input (Tensor): Shape (B, C, H, W).
        weight (Tensor): Shape (O, C / group, kernel_h, kernel_w).
        bias (Tensor): Shape (O,), or empty.
        ones (Tensor): Unused.
        offset (Tensor): Shape (B, deformable_group * 2 * kernel_h * kernel_w, H', W').
        mask (Tensor): Shape (B, deformable_group * kernel_h * kernel_w, H', W').
        output (Tensor): Output, shape (B, O, H', W').
        columns (Tensor): Unused.
        kernel_h (int): Kernel height; ``weight`` says it too.
        kernel_w (int): Kernel width.
        stride_h (int): Stride in y.
        stride_w (int): Stride in x.
        pad_h (int): Padding in y.
        pad_w (int): Padding in x.
        dilation_h (int): Dilation in y.
        dilation_w (int): Dilation in x.
        group (int): Groups of channels.
        deformable_group (int): Groups of channels that share displacements.
        with_bias (bool): Whether ``bias`` is to be added.
    """
    layout = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    added = bias if with_bias else None
    output.copy_(_convolve(input, weight, offset, mask, added, layout))


def modulated_deform_conv_backward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    ones: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    columns: torch.Tensor,
    grad_input: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_bias: torch.Tensor,
    grad_offset: torch.Tensor,
    grad_mask: torch.Tensor,
    grad_output: torch.Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward`.

    Args:
        input (Tensor): As in the forward pass, like all that is not named here.
        grad_input (Tensor): Output, the shape of ``input``.
        grad_weight (Tensor): Output, the shape of ``weight``.
        grad_bias (Tensor): Output, the shape of ``bias``, if ``with_bias``.
        grad_offset (Tensor): Output, the shape of ``offset``.
        grad_mask (Tensor): Output, the shape of ``mask``.
        grad_output (Tensor): Shape (B, O, H', W').
    """
    layout = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    grads = _convolve_backward(grad_output, input, weight, offset, mask, None, layout)
    for out, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads[:4], strict=True):
        out.copy_(grad)
    if with_bias:
        grad_bias.copy_(grads[4])


def ms_deform_attn_forward(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    value_level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    im2col_step: int,
) -> torch.Tensor:
    """Weighted sum of samples of several maps, per query and head.

    Args:
        value (Tensor): The maps' pixels, one map after the other, shape
            (B, sum of H * W, heads, D).
        value_spatial_shapes (Tensor): (H, W) of each of the L maps, shape (L, 2), int64.
        value_level_start_index (Tensor): Unused; the shapes say it.
        sampling_locations (Tensor): (x, y) in [0, 1], shape (B, Q, heads, L, P, 2).
        attention_weights (Tensor): Shape (B, Q, heads, L, P).
        im2col_step (int): Unused.

    Returns:
        Tensor: Shape (B, Q, heads * D), of the type of ``value``.
    """
    dtype = working_dtype(value)
    operands = [tensor.to(dtype) for tensor in (value, sampling_locations, attention_weights)]
    return _attend(value_spatial_shapes, *operands).to(value.dtype)


def ms_deform_attn_backward(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    value_level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    grad_output: torch.Tensor,
    grad_value: torch.Tensor,
    grad_sampling_loc: torch.Tensor,
    grad_attn_weight: torch.Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward`, by running it again.

    Args:
        value (Tensor): As in the forward pass, like all that is not named here.
        grad_output (Tensor): Shape (B, Q, heads * D).
        grad_value (Tensor): Output, the shape of ``value``.
        grad_sampling_loc (Tensor): Output, the shape of ``sampling_locations``.
        grad_attn_weight (Tensor): Output, the shape of ``attention_weights``.
    """
    dtype = working_dtype(value)
    operands = [
        tensor.detach().to(dtype).requires_grad_()
        for tensor in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = _attend(value_spatial_shapes, *operands)
    grads = torch.autograd.grad(output, operands, grad_output.to(output.dtype))
    for out, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        out.copy_(grad)


def _attend(shapes, value, locations, weights):
    # mmcv.ops imports mmcv._ext, hence this module, before it has that function.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def _convolve(input, weight, offset, mask, bias, layout):
    operands = _operands(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*operands, *layout, mask is not None)


def _convolve_backward(grad, input, weight, offset, mask, bias, layout):
    """Gradients for (input, weight, offset, mask, bias), in this order."""
    operands = _operands(input, weight, offset, mask, bias)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad.to(operands[0].dtype), *operands, *layout, mask is not None
    )
    outside = _is_outside(operands[2], input.shape[2:], weight.shape[2:], layout)
    grads[2].view_as(outside.expand(-1, -1, -1, 2, -1, -1)).masked_fill_(outside, 0)
    return grads


def _is_outside(offset, size, kernel, layout):
    """Find the samples that lie a whole pixel or more outside the map.

    Exactly one pixel outside, where the samples of a zero-initialised 3x3 kernel with
    padding 1 lie, bilinear interpolation has a kink: torchvision takes the slope of the
    side within, mmcv that of the side without, which is 0.

    Returns:
        Tensor: Bool, shape (B, deformable groups, kh * kw, 1, H', W').
    """
    stride, padding, dilation, groups = layout[:2], layout[2:4], layout[4:6], layout[7]
    offset = offset.unflatten(1, (groups, *kernel, 2))  # (B, G, kh, kw, 2, H', W')
    outside = torch.zeros((), dtype=torch.bool, device=offset.device)
    for axis in range(2):
        tap = torch.arange(kernel[axis], device=offset.device) * dilation[axis]
        out = torch.arange(offset.shape[axis - 2], device=offset.device) * stride[axis]
        tap = tap.view(-1, *[1] * (3 - axis))
        out = (out - padding[axis]).view(-1, *[1] * (1 - axis))
        position = out + tap + offset[:, :, :, :, axis]
        outside = outside | (position <= -1) | (position >= size[axis])
    return outside.flatten(2, 3).unsqueeze(3)


def _operands(input, weight, offset, mask, bias):
    """Widen the operands, with the blanks that torchvision expects for no mask or bias."""
    dtype = working_dtype(input)
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return [tensor.to(dtype) for tensor in (input, weight, offset, mask, bias)]
