"""RoIAlign: average pooling by torchvision's operator, max pooling in plain PyTorch.

The same arithmetic as ``mmcv/ops/csrc/pytorch/cpu/roi_align.cpp``. mmdet uses
average pooling only; max pooling goes RoI by RoI and is not fast.
"""

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)

from coc_mm.compat.mmcv_operators.precision import c_float, working_dtype

_MAX = 0  # pool_mode; 1 is the average


def roi_align_forward(
    input: torch.Tensor,
    rois: torch.Tensor,
    output: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool each RoI into a grid of bins, from bilinear samples (arXiv 1703.06870).

    Args:
        input (Tensor): Feature maps, shape (B, C, H, W).
        rois (Tensor): Rows (map's index, x1, y1, x2, y2), shape (R, 5), in pixels of
            the image.
        output (Tensor): Output, shape (R, C, aligned_height, aligned_width).
        argmax_y (Tensor): Output for max pooling, of that shape: where the greatest
            sample lies, in pixels of the map; -1 where there was none.
        argmax_x (Tensor): The same for x.
        aligned_height (int): Rows of bins.
        aligned_width (int): Columns of bins.
        spatial_scale (float): Pixels of the map per pixel of the image.
        sampling_ratio (int): Samples per bin and axis; 0 for as many as the bin has
            pixels, rounded up.
        pool_mode (int): 0 max, 1 average.
        aligned (bool): Whether coordinates are shifted by half a pixel, so that pixel
            centers lie where they belong. Without it, RoIs are at least one pixel.

    Raises:
        RuntimeError: On the CPU, a RoI names a map that does not exist, is not
            finite, or (``aligned``) ends before it starts.
    """
    if output.numel() == 0:
        return
    dtype = working_dtype(input)
    values, boxes = input.to(dtype), rois.to(dtype)
    _check_rois(values, boxes, aligned)
    grid = (aligned_height, aligned_width)
    scale = c_float(spatial_scale)
    if pool_mode == _MAX:
        pooled, where_y, where_x = _max_pool(values, boxes, grid, scale, sampling_ratio, aligned)
        argmax_y.copy_(where_y)
        argmax_x.copy_(where_x)
    else:
        pooled = torch.ops.torchvision.roi_align(
            values, boxes, scale, *grid, sampling_ratio, aligned
        )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    grad_input: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` with respect to the maps.

    Args:
        grad_output (Tensor): Shape (R, C, aligned_height, aligned_width).
        rois (Tensor): Shape (R, 5).
        argmax_y (Tensor): What the forward pass wrote.
        argmax_x (Tensor): What the forward pass wrote.
        grad_input (Tensor): Output, zeros of shape (B, C, H, W), to be added to.
        aligned_height (int): Rows of bins.
        aligned_width (int): Columns of bins.
        spatial_scale (float): Pixels of the map per pixel of the image.
        sampling_ratio (int): Samples per bin and axis, or 0.
        pool_mode (int): 0 max, 1 average.
        aligned (bool): As in the forward pass.
    """
    if grad_output.numel() == 0:
        return
    dtype = working_dtype(grad_output)
    grad, boxes = grad_output.to(dtype), rois.to(dtype)
    if pool_mode == _MAX:
        grad = _max_pool_backward(
            grad, boxes, argmax_y.to(dtype), argmax_x.to(dtype), grad_input.shape
        )
    else:
        grad = torch.ops.torchvision._roi_align_backward(
            grad,
            boxes,
            c_float(spatial_scale),
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    grad_input.add_(grad)


def _check_rois(values, boxes, aligned):
    """Raise where torchvision's CPU kernel would read outside the maps and crash."""
    if boxes.device.type != 'cpu':  # there it would cost a synchronisation
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


def _max_pool(values, boxes, grid, scale, sampling_ratio, aligned):
    """Max pooling, RoI by RoI.

    Returns:
        tuple[Tensor, Tensor, Tensor]: The maxima and their y and x, each of shape
        (R, C, *grid).
    """
    # mmcv's kernels begin the search for the maximum here; an empty bin keeps it.
    floor = -10000.0 if values.device.type == 'cpu' else torch.finfo(torch.float32).min
    pooled = values.new_full((len(boxes), values.size(1), *grid), floor)
    where_y, where_x = torch.full_like(pooled, -1), torch.full_like(pooled, -1)
    for r, (index, *corners) in enumerate(boxes.unbind()):
        starts = torch.stack(corners[:2]) * scale - 0.5 * aligned
        sizes = torch.stack(corners[2:]) * scale - 0.5 * aligned - starts
        if not aligned:
            sizes = sizes.clamp(min=1)
        xs, ys = (
            _sample_positions(start, size, bins, sampling_ratio)
            for start, size, bins in zip(starts, sizes, grid[::-1], strict=True)
        )
        if not (xs.numel() and ys.numel()):
            continue
        # (C, rows, samples, columns, samples) -> (C, rows, columns, samples)
        samples = _interpolate(values[int(index)], ys.flatten(), xs.flatten())
        samples = samples.unflatten(2, xs.shape).unflatten(1, ys.shape)
        samples = samples.transpose(2, 3).flatten(3)
        best = samples.amax(3)
        # The first of equals wins, which Tensor.max does not promise.
        number = torch.arange(samples.size(3), device=samples.device)
        first = number.where(samples == best[..., None], len(number)).amin(3)
        found = best > floor
        rows = torch.arange(grid[0], device=samples.device)[:, None]
        columns = torch.arange(grid[1], device=samples.device)
        pooled[r] = best.where(found, floor)
        where_y[r] = ys[rows, first // xs.size(1)].where(found, -1)
        where_x[r] = xs[columns, first % xs.size(1)].where(found, -1)
    return pooled, where_y, where_x


def _sample_positions(start, size, bins, sampling_ratio):
    """Coordinates along one axis, shape (bins, samples per bin)."""
    step = size / bins
    count = sampling_ratio if sampling_ratio > 0 else max(int(step.ceil()), 0)
    bin_number = torch.arange(bins, device=start.device, dtype=start.dtype)[:, None]
    sample = torch.arange(count, device=start.device, dtype=start.dtype) + 0.5
    return start + bin_number * step + sample * step / count


def _neighbours(position, size):
    """Pixels to the sides of each position, and their weights, along one axis.

    Positions up to one pixel outside are moved to the border, those beyond weigh 0.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: Lower and upper index, lower and upper
        weight, each of the positions' shape.
    """
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.long()
    high = (low + 1).clamp(max=size - 1)
    weight = position - low
    return low, high, (1 - weight) * inside, weight * inside


def _interpolate(values, ys, xs):
    """Bilinear samples of (C, H, W) values at the grid of ys and xs: (C, Y, X)."""
    y_low, y_high, y_low_weight, y_high_weight = _neighbours(ys, values.size(1))
    x_low, x_high, x_low_weight, x_high_weight = _neighbours(xs, values.size(2))
    samples = 0
    for y, y_weight in ((y_low, y_low_weight), (y_high, y_high_weight)):
        for x, x_weight in ((x_low, x_low_weight), (x_high, x_high_weight)):
            samples = samples + y_weight[:, None] * x_weight * values[:, y[:, None], x]
    return samples


def _max_pool_backward(grad, boxes, ys, xs, shape):
    """Spread each bin's gradient over the four pixels around its greatest sample.

    Returns:
        Tensor: Of ``shape``, (B, C, H, W).
    """
    _, channels, height, width = shape
    grad = grad * (ys != -1)  # no sample, no gradient
    y_low, y_high, y_low_weight, y_high_weight = _neighbours(ys, height)
    x_low, x_high, x_low_weight, x_high_weight = _neighbours(xs, width)
    channel = torch.arange(channels, device=grad.device)
    plane = boxes[:, 0].long()[:, None] * channels + channel  # (R, C)
    plane = plane[:, :, None, None]
    spread = grad.new_zeros(shape).flatten()
    for y, y_weight in ((y_low, y_low_weight), (y_high, y_high_weight)):
        for x, x_weight in ((x_low, x_low_weight), (x_high, x_high_weight)):
            target = (plane * height + y) * width + x
            spread.index_add_(0, target.flatten(), (grad * y_weight * x_weight).flatten())
    return spread.view(shape)
