"""mmcv's compiled operators on top of torchvision and plain PyTorch.

Names, order of arguments and outputs written in place are those of the bindings in
``mmcv/ops/csrc/pytorch/pybind.cpp``, so that ``mmcv/ops/*.py`` calls them unchanged: tensors by
position, everything else by keyword. On CPU and CUDA; float64 is computed in float64, all else in
float32 and rounded once at the end, where the compiled operators compute in half precision and
refuse bfloat16. Python floats are rounded to C floats where the compiled signature says ``float``:
comparisons such as ``iou > 0.6`` hinge on it.
"""

import ctypes
from types import FunctionType
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

_SMALLEST = torch.finfo(torch.float32).tiny  # FLT_MIN


def _c_float(value: float) -> float:
    return ctypes.c_float(value).value


def _working_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def get_compiler_version() -> str:
    """Say, where mmcv reports its compiler, that there was none."""
    return f'not compiled (coc_mm, torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """Answer as mmcv does when it was compiled without CUDA."""
    return 'not available'


# Boxes (x1, y1, x2, y2); widths and heights are x2 - x1 + offset.


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of boxes that overlap no better one by more than the threshold.

    Best score first, equal scores in the order of ``torch.sort``.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    # torchvision's own sort is stable, mmcv's is not: sort as mmcv does, and let ranks
    # stand for the scores, so that equal scores come out in the same order.
    order = scores.sort(0, descending=True).indices
    ranks = torch.arange(len(order), 0, -1, device=boxes.device)
    # torchvision knows no offset, and adding one in float32 would round the
    # coordinates; in float64 the sum is exact and so is a tie with the threshold.
    dtype = torch.float64 if offset else _working_dtype(boxes)
    boxes = boxes[order].to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    threshold = _c_float(iou_threshold) if dtype == torch.float32 else float(iou_threshold)
    return order[torchvision.ops.nms(boxes, ranks.to(dtype), threshold)]


def softnms(
    boxes: Tensor, scores: Tensor, dets: Tensor, *, method: int, offset: int, **floats: float
) -> Tensor:
    """Lower the scores of boxes that overlap a better one (arXiv 1704.04503).

    ``method`` is 0 naive, 1 linear, 2 gaussian. The first rows of ``dets`` (N, 5) become the boxes
    whose score stays at ``min_score`` or above, in the order of selection; their indices are
    returned. Among equal scores the order is mmcv's: the best box changes places with the first
    remaining one, and a dropped box's place is taken by the last one.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    dtype = _working_dtype(boxes)
    x1, y1, x2, y2 = corners = boxes.t().to('cpu', dtype).numpy()
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    # Rows: x1, y1, x2, y2, score, area; one column a box; a copy, so free to change.
    columns = np.stack([*corners, scores.to('cpu', dtype).numpy(), areas])
    number = columns.dtype.type
    names = ('iou_threshold', 'sigma', 'min_score')
    iou_threshold, sigma, min_score = (number(floats[name]) for name in names)
    order = np.arange(columns.shape[1])

    chosen = 0
    while chosen < len(order):
        left = columns[4, chosen:]
        # The gaussian of 0 / 0, two boxes without area, is NaN. mmcv compares with
        # `<`, so NaN is never greater, nor is anything greater than NaN.
        best = chosen + (0 if np.isnan(left[0]) else int(np.nanargmax(left)))
        columns[:, [chosen, best]] = columns[:, [best, chosen]]
        order[[chosen, best]] = order[[best, chosen]]
        chosen += 1
        box, rest = columns[:, chosen - 1], columns[:, chosen:]
        width = np.minimum(box[2], rest[2]) - np.maximum(box[0], rest[0]) + offset
        height = np.minimum(box[3], rest[3]) - np.maximum(box[1], rest[1]) + offset
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(divide='ignore', invalid='ignore'):
            iou = inter / (box[5] + rest[5] - inter)
        if method == 2:
            # numpy's float32 exp is off by an ulp or two, the C library's is not, and
            # an ulp can change who comes first.
            rest[4] *= np.exp((-(iou * iou) / sigma).astype(np.float64)).astype(number)
        else:
            lower = 1 - iou if method == 1 else number(0)
            rest[4] *= np.where(iou >= iou_threshold, lower, number(1))
        keep = ~(rest[4] < min_score)
        kept = np.flatnonzero(keep)
        stays = np.arange(len(kept))
        # As many gaps lie among the first places as kept ones beyond them.
        stays[~keep[: len(kept)]] = kept[kept >= len(kept)][::-1]
        columns = np.concatenate([columns[:, :chosen], rest[:, stays]], axis=1)
        order = np.concatenate([order[:chosen], order[chosen:][stays]])

    dets[: len(order)] = torch.from_numpy(columns[:5].T.copy()).to(dets)
    return torch.from_numpy(order)


# RoIAlign (arXiv 1703.06870); average pooling, the only one that mmdet uses.


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, *argmax: Tensor, **layout: Any
) -> None:
    """Pool each RoI (map's index, x1, y1, x2, y2) into a grid of bins, from bilinear samples."""
    if layout['pool_mode'] != 1:
        raise NotImplementedError(
            "roi_align: coc_mm's stand-in for mmcv's compiled operators has average pooling "
            "(pool_mode='avg') alone."
        )
    if output.numel():
        values, boxes = input.to(_working_dtype(input)), rois.to(_working_dtype(input))
        _check_rois(values, boxes, layout['aligned'])
        output.copy_(torch.ops.torchvision.roi_align(values, boxes, *_pooling(layout)))


def roi_align_backward(*tensors: Tensor, **layout: Any) -> None:
    """Add the gradient of :func:`roi_align_forward` with respect to the maps."""
    grad_output, rois, _, _, grad_input = tensors
    if grad_output.numel():
        dtype = _working_dtype(grad_output)
        *pooling, ratio, aligned = _pooling(layout)
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad_output.to(dtype), rois.to(dtype), *pooling, *grad_input.shape, ratio, aligned
        )


def _pooling(layout):
    grid = layout['aligned_height'], layout['aligned_width']
    return _c_float(layout['spatial_scale']), *grid, layout['sampling_ratio'], layout['aligned']


def _check_rois(values, boxes, aligned):
    """Raise where torchvision's CPU kernel would read outside the maps and crash."""
    if boxes.device.type != 'cpu':  # there it would cost a synchronization
        return
    index, sizes = boxes[:, 0], boxes[:, 3:] - boxes[:, 1:3]
    if not boxes.isfinite().all():
        problem = 'a RoI with coordinates that are not finite; has the training diverged?'
    elif not ((index >= 0) & (index < len(values))).all():
        problem = f'a RoI whose first column is not one of the {len(values)} maps.'
    elif aligned and (sizes < 0).any():
        problem = 'a RoI that ends before it starts (x2 < x1 or y2 < y1).'
    else:
        return
    raise RuntimeError(f'roi_align: {problem}')


# Sigmoid focal loss (arXiv 1708.02002) of logits (N, C) and labels (N,); C is the background.


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the loss of every logit taken as a yes-or-no question, as mmcv's CUDA kernel.

    The argument of the logarithm is at least the smallest normal float32: a hopelessly wrong logit
    costs 87.3. ``weight`` is a factor per label, or empty.
    """
    classes = input.size(1)
    largest = classes - 1 if weight.numel() else classes
    if target.numel() and (found := int(target.max())) > largest:
        weighted = ' and a weight for each' if weight.numel() else ''
        raise ValueError(
            f'focal loss: label {found} with {classes} classes{weighted}: the largest allowed is '
            f'{largest}.'
        )
    _, right, wrong, factor, gamma = _focal_terms(input, target, weight, gamma, alpha)
    output.copy_(-factor * wrong**gamma * right.clamp(min=_SMALLEST).log())


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward`."""
    positive, right, wrong, factor, gamma = _focal_terms(input, target, weight, gamma, alpha)
    slope = wrong**gamma * (wrong - gamma * right * right.clamp(min=_SMALLEST).log())
    grad_input.copy_(torch.where(positive, -slope, slope) * factor)


def _focal_terms(input, target, weight, gamma, alpha):
    prob = input.to(_working_dtype(input)).sigmoid()
    positive = target[:, None] == torch.arange(input.size(1), device=input.device)
    shares = prob.new_tensor([1 - _c_float(alpha), _c_float(alpha)])
    factor = shares[positive.long()]
    if weight.numel():
        # A negative label has no weight of its own; mmcv's kernels read outside the array there.
        factor = factor * weight[target.clamp(min=0)].to(prob.dtype)[:, None]
    right = torch.where(positive, prob, 1 - prob)
    wrong = torch.where(positive, 1 - prob, prob)
    return positive, right, wrong, factor, _c_float(gamma)


# Deformable convolution (arXiv 1703.06211, 1811.11168), which agrees with torchvision's in the
# layout of the offsets (B, groups * kernel * 2, H, W), y first, and in what lies outside the map.


def deform_conv_forward(*tensors: Tensor, **layout: Any) -> None:
    """Convolve with a displacement per output position and kernel position."""
    input, weight, offset, output, *_ = tensors
    output.copy_(_convolve(input, weight, offset, None, None, layout))


def deform_conv_backward_input(*tensors: Tensor, **layout: Any) -> None:
    """Write the gradients for the map and the displacements."""
    input, offset, grad_output, grad_input, grad_offset, weight, _ = tensors
    grads = _convolve_backward(grad_output, input, weight, offset, None, layout)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(*tensors: Tensor, scale: float, **layout: Any) -> None:
    """Add the gradient for the kernel, times ``scale``."""
    input, offset, grad_output, grad_weight, *_ = tensors
    # It does not depend on the kernel: zeros have its shape.
    weight = torch.zeros_like(grad_weight)
    grads = _convolve_backward(grad_output, input, weight, offset, None, layout)
    grad_weight.add_(grads[1].to(grad_weight.dtype), alpha=scale)


def modulated_deform_conv_forward(*tensors: Tensor, with_bias: bool, **layout: Any) -> None:
    """Convolve with displacements, a factor per sample, and a bias."""
    input, weight, bias, _, offset, mask, output, _ = tensors
    output.copy_(_convolve(input, weight, offset, mask, bias if with_bias else None, layout))


def modulated_deform_conv_backward(*tensors: Tensor, with_bias: bool, **layout: Any) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    input, weight, _, _, offset, mask, _, *grad_inputs, grad_output = tensors
    grad_input, grad_weight, grad_bias, grad_offset, grad_mask = grad_inputs
    grads = _convolve_backward(grad_output, input, weight, offset, mask, layout)
    outputs = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for out, grad in zip(outputs[: 4 + with_bias], grads, strict=False):
        out.copy_(grad)


def _convolve(input, weight, offset, mask, bias, layout):
    operands = _operands(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*operands, *_steps(layout), mask is not None)


def _convolve_backward(grad, input, weight, offset, mask, layout):
    """Gradients for (input, weight, offset, mask, bias), in this order."""
    operands = _operands(input, weight, offset, mask, None)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad.to(operands[0].dtype), *operands, *_steps(layout), mask is not None
    )
    outside = _is_outside(operands[2], input.shape[2:], weight.shape[2:], _steps(layout))
    grads[2].view_as(outside.expand(-1, -1, -1, 2, -1, -1)).masked_fill_(outside, 0)
    return grads


def _steps(layout):
    """Stride, padding and dilation in (y, x), groups and deformable groups, of either binding."""
    names = (
        ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW')
        if 'dH' in layout
        else ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w')
    )
    return [layout[name] for name in (*names, 'group', 'deformable_group')]


def _operands(input, weight, offset, mask, bias):
    """Widen the operands, with the blanks that torchvision expects for no mask or bias."""
    dtype = _working_dtype(input)
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return [tensor.to(dtype) for tensor in (input, weight, offset, mask, bias)]


def _is_outside(offset, size, kernel, steps):
    """Find the samples a pixel or more outside the map: (B, groups, kh * kw, 1, H', W').

    Exactly one pixel outside, where the samples of a zero-initialized 3x3 kernel with
    padding 1 lie, bilinear interpolation has a kink: torchvision takes the slope of the
    side within, mmcv that of the side without, which is 0.
    """
    stride, padding, dilation, groups = steps[:2], steps[2:4], steps[4:6], steps[7]
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


# Deformable attention (arXiv 2010.04159) by mmcv's own PyTorch version, else used on the CPU only.


def ms_deform_attn_forward(*tensors: Tensor, im2col_step: int) -> Tensor:
    """Sum weighted samples of several maps, per query and head."""
    value, shapes, _, locations, weights = tensors
    dtype = _working_dtype(value)
    return _attend(shapes, *(t.to(dtype) for t in (value, locations, weights))).to(value.dtype)


def ms_deform_attn_backward(*tensors: Tensor, im2col_step: int) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`, by running it again."""
    value, shapes, _, locations, weights, grad_output, *outputs = tensors
    dtype = _working_dtype(value)
    operands = [t.detach().to(dtype).requires_grad_() for t in (value, locations, weights)]
    with torch.enable_grad():
        output = _attend(shapes, *operands)
    grads = torch.autograd.grad(output, operands, grad_output.to(output.dtype))
    for out, grad in zip(outputs, grads, strict=True):
        out.copy_(grad)


def _attend(shapes, value, locations, weights):
    # mmcv.ops imports this module before it has that function.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


OPERATORS = {
    name: found
    for name, found in list(globals().items())
    if isinstance(found, FunctionType) and found.__module__ == __name__ and name[0] != '_'
}
