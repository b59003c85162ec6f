"""What is allocated, and which kernels run."""

import contextlib
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from coc_mm.ops.backends.triton_kernels import passes
from coc_mm.ops.backends.triton_kernels.tiles import EPS, INTERPRETED, Meta

# One program serves a region of up to REGION_POINTS points, or of any size where there are
# PROGRAMS of them to fill the machine (8 for each multiprocessor of the largest). Otherwise the
# points of a region are split, MIN_SPLIT at least to each. Constants, not properties of the device
# or timings: the order of sums, and with it every bit of the result, follows from the shapes alone.
REGION_POINTS = 512
PROGRAMS = 1024
MIN_SPLIT = 256


class Plan(NamedTuple):
    """How a call is run."""

    groups: int  # regions x heads x images
    num_splits: int  # programs of a region
    sizes: tuple  # H, W, E, folds, points of the largest region and of a program, num_splits
    options: dict  # what the kernels are compiled for


def plan(x, proposals, folds, by_count):
    """Decide how to run on (B, H, W, E, D)."""
    batch, height, width, heads, channels = x.shape
    fold_h, fold_w = min(folds[0], height), min(folds[1], width)
    groups = batch * fold_h * fold_w * heads
    points = split = -(-height // fold_h) * -(-width // fold_w)
    if points > REGION_POINTS and groups < PROGRAMS:
        split = max(MIN_SPLIT, -(-points // -(-PROGRAMS // max(groups, 1))))
    num_splits = -(-points // split)
    centers = proposals[0] * proposals[1]
    block_m = max(16, triton.next_power_of_2(centers))
    block_d = max(16, triton.next_power_of_2(channels))
    block_n, warps = _block(block_m, block_d, x.dtype)
    block_n = max(16, min(block_n, triton.next_power_of_2(split)))
    align = math.gcd(16, channels)
    meta = (*proposals, centers, channels, align, by_count, block_n, block_m, block_d)
    sizes = (height, width, heads, fold_h, fold_w, points, split, num_splits)
    if not INTERPRETED.value:  # Triton 3.6 takes shapes of blocks as nothing else
        meta = tuple(map(tl.constexpr, meta))
    options = dict(meta=Meta(*meta), num_warps=warps, num_stages=2)
    return Plan(groups, num_splits, sizes, options)


def _block(block_m, block_d, dtype):
    """Return points of a tile and warps of a program, by what keeps sums in registers.

    As ptxas counts for compute capability 9.0; float32 takes more, outside of the tensor cores.
    """
    numbers = block_m * block_d
    if dtype == torch.float32:
        return 32 if numbers <= 2048 else 16, 4 if numbers <= 512 else 8
    return 64 if numbers <= 4096 and block_d <= 64 else 32, 4 if numbers <= 2048 else 8


def _rows(*maps):
    """Return each map as the kernels read it, with the distance of its points.

    That is with points in row-major order, and aligned as shape and dtype allow: others are copied.
    """
    arguments = []
    for x in maps:
        _, h, w, e, d = x.shape
        row, align = x.stride(2), math.gcd(16, d)
        aligned = row % align == 0 and x.data_ptr() % min(16, align * x.element_size()) == 0
        if not aligned or x.stride() != (h * w * row, w * row, row, d, 1):
            x, row = x.clone(memory_format=torch.contiguous_format), e * d
        arguments += [x, row]
    return arguments


def forward(x, v, alpha, beta, proposals, folds, by_count):
    """Return the output, and for the backward pass, with G = images x regions x heads:

    similarity and center (G, N) of points, aggregates (G, M, D), what they were divided by (G, M),
    centers of length one (G, M, D) and the lengths they had (G, M).
    """
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    p = plan(x, proposals, folds, by_count)
    height, width, _, fold_h, fold_w, points, *_ = p.sizes
    rows = (p.groups, proposals[0] * proposals[1], x.shape[-1])
    new = alpha.new_empty
    # Where regions differ in size the ends of some rows are not written.
    per_point = alpha.new_zeros if height % fold_h or width % fold_w else new
    s, index = per_point(p.groups, points), per_point((p.groups, points), dtype=torch.uint8)
    g, total, unit, length = new(rows), new(rows[:2]), new(rows), new(rows[:2])
    saved = (s, index, g, total, unit, length)
    if not p.groups:
        return out, *saved

    maps = _rows(x, v)
    with _device(x):
        if p.num_splits == 1:
            passes.forward_kernel[(p.groups,)](
                *(*maps, out, alpha, beta, s, index, g, total, unit, length, *p.sizes), **p.options
            )
            return out, *saved
        grid = (p.groups * p.num_splits,)
        center, value_center, sums = (new(p.groups, p.num_splits, *rows[1:]) for _ in range(3))
        weight = new(p.groups, p.num_splits, rows[1])
        passes.pool_kernel[grid](*maps, center, value_center, *p.sizes, **p.options)
        center = center.sum(1)
        torch.linalg.vector_norm(center, dim=-1, out=length)
        torch.div(center, length.clamp_min(EPS.value).unsqueeze(-1), out=unit)
        passes.assign_kernel[grid](
            *(*maps, unit, alpha, beta, s, index, sums, weight, *p.sizes), **p.options
        )
        torch.add(weight.sum(1), 1, out=total)
        torch.div(sums.sum(1) + value_center.sum(1), total.unsqueeze(-1), out=g)
        passes.dispatch_kernel[grid](out, g, s, index, *p.sizes, **p.options)
    return out, *saved


def backward(grad, x, v, alpha, saved, grad_x, grad_v, proposals, folds, by_count):
    """Run the backward kernels; return the gradients of alpha and beta, float32 scalars.

    ``grad`` is that of the output, ``saved`` what :func:`forward` returned beside it; ``grad_x``
    and ``grad_v`` (B, H, W, E, D), points in row-major order, are written.
    """
    s, index, g, total, unit, length = saved
    p = plan(x, proposals, folds, by_count)
    scalars = s.new_empty(p.groups * p.num_splits, 2)
    if not p.groups:
        return scalars.sum(0).unbind()
    pull, shrink = torch.empty_like(s), torch.empty_like(total)
    x, v, grad = (tuple(_rows(t)) for t in (x, v, grad))
    grad_x, grad_v = ((t, t.stride(2)) for t in (grad_x, grad_v))
    with _device(s):
        if p.num_splits == 1:
            passes.backward_kernel[(p.groups,)](
                *(*x, *v, *grad, *grad_x, *grad_v, alpha, s, index, g, total, unit, length),
                *(pull, torch.empty_like(g), shrink, scalars, *p.sizes),
                **p.options,
            )
            return scalars.sum(0).unbind()
        grid = (p.groups * p.num_splits,)
        parts, unit_parts = (g.new_empty(p.groups, p.num_splits, *g.shape[1:]) for _ in range(2))
        passes.collect_kernel[grid](*grad, s, index, parts, *p.sizes, **p.options)
        grad_g = parts.sum(1) / total.unsqueeze(-1)
        shrink = shrink.zero_() if by_count else (grad_g * g).sum(-1)
        passes.values_gradient_kernel[grid](
            *(*x, *v, *grad, *grad_v, alpha, s, index, g, unit, pull, grad_g, shrink, unit_parts),
            *(scalars, *p.sizes),
            **p.options,
        )
        grad_unit = unit_parts.sum(1)
        radial = (grad_unit * unit).sum(-1).where(length > EPS.value, 0)
        grad_center = grad_unit - unit * radial.unsqueeze(-1)
        grad_center = grad_center / length.clamp_min(EPS.value).unsqueeze(-1)
        passes.features_gradient_kernel[grid](
            *(*x, *grad_x, grad_center, unit, pull, index, *p.sizes), **p.options
        )
    return scalars.sum(0).unbind()


def _device(x):
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
