"""What is allocated, and which kernels run."""

import contextlib
import math
from typing import NamedTuple

import torch
import triton

from coc_mm.ops.backends.triton_kernels import backward as back
from coc_mm.ops.backends.triton_kernels import forward as fore

# One program serves a region of up to REGION_POINTS points, or of any size where there are
# PROGRAMS of them to fill the machine (8 for each multiprocessor of the largest). Otherwise the
# points of a region are shared out, SHARE_POINTS at least to each. Constants, not properties of
# the device or timings: the order of sums, and with it every bit of the result, follows from the
# shapes alone.
REGION_POINTS = 512
PROGRAMS = 1024
SHARE_POINTS = 256


class Plan(NamedTuple):
    """How a call is run.

    Attributes:
        groups (int): Regions x heads x images.
        points (int): Points of the largest region.
        share (int): Points of a region that one program takes.
        shares (int): Programs of a region.
        sizes (tuple[int]): H, W, E and the folds, for the kernels.
        meta (dict): What the kernels are compiled for.
    """

    groups: int
    points: int
    share: int
    shares: int
    sizes: tuple
    meta: dict


def plan(x, proposals, folds, tensors):
    """Decide how to run.

    Args:
        x (Tensor): (B, H, W, E, D).
        proposals (tuple[int, int]): Centers per region.
        folds (tuple[int, int]): Regions asked for.
        tensors (list[Tensor]): Every map that is read or written.

    Returns:
        Plan: The decision.
    """
    batch, height, width, heads, channels = x.shape
    fold_h, fold_w = min(folds[0], height), min(folds[1], width)
    groups = batch * fold_h * fold_w * heads
    points = -(-height // fold_h) * -(-width // fold_w)
    share = points
    if points > REGION_POINTS and groups < PROGRAMS:
        wanted = -(-PROGRAMS // groups) if groups else 1
        share = max(SHARE_POINTS, -(-points // wanted))
    align = math.gcd(16, channels, *(t.stride(i) for t in tensors for i in range(4)))
    block_m = max(16, triton.next_power_of_2(proposals[0] * proposals[1]))
    block_d = max(16, triton.next_power_of_2(channels))
    block_n, warps = _block(block_m, block_d, x.dtype)
    meta = dict(
        PH=proposals[0],
        PW=proposals[1],
        D=channels,
        ALIGN=align,
        BLOCK_N=max(16, min(block_n, triton.next_power_of_2(share))),
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        num_warps=warps,
        num_stages=2,
    )
    sizes = (height, width, heads, fold_h, fold_w)
    return Plan(groups, points, share, -(-points // share), sizes, meta)


def _block(block_m, block_d, dtype):
    """Return points of a tile and warps of a program, by what keeps sums in registers.

    As ptxas counts for compute capability 9.0. float32 is multiplied outside of the tensor cores,
    with more numbers at hand.
    """
    numbers = block_m * block_d
    if dtype == torch.float32:
        return 32 if numbers <= 2048 else 16, 4 if numbers <= 512 else 8
    return 64 if numbers <= 4096 and block_d <= 64 else 32, 4 if numbers <= 2048 else 8


def forward(x, v, alpha, beta, proposals, folds, by_count):
    """Run the forward kernels.

    Args:
        x (Tensor): (B, H, W, E, D), points in the similarity space.
        v (Tensor): (B, H, W, E, D), points in the value space.
        alpha (Tensor): One float32 element.
        beta (Tensor): One float32 element.
        proposals (tuple[int, int]): Centers per region.
        folds (tuple[int, int]): Regions.
        by_count (bool): What aggregates are divided by.

    Returns:
        tuple[Tensor]: The output, and for the backward pass, with G = images x regions x heads:
        similarity (G, N) and center (G, N) of every point, aggregates (G, M, D), what they were
        divided by (G, M), centers of length one (G, M, D) and the lengths they had (G, M).
    """
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    p = plan(x, proposals, folds, [x, v, out])
    rows = (p.groups, proposals[0] * proposals[1], x.shape[-1])
    # Where regions differ in size the ends of some rows are not written.
    ragged = p.sizes[0] % p.sizes[3] or p.sizes[1] % p.sizes[4]
    per_point = torch.zeros if ragged else torch.empty
    s = per_point(p.groups, p.points, dtype=torch.float32, device=x.device)
    index = per_point(p.groups, p.points, dtype=torch.uint8, device=x.device)
    g, unit = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    total, length = (torch.empty(rows[:2], dtype=torch.float32, device=x.device) for _ in range(2))
    saved = (s, index, g, total, unit, length)
    if not p.groups:
        return out, *saved

    maps = (*x.stride(), *v.stride(), *p.sizes)
    share = (p.share, p.shares)
    with _device(x):
        if p.shares == 1:
            fore.forward_kernel[(p.groups,)](
                *(x, v, out, alpha, beta, s, index, g, total, unit, length, *maps, p.points),
                BY_COUNT=by_count,
                **p.meta,
            )
            return out, *saved
        grid = (p.groups * p.shares,)
        center, value_center, sums = (s.new_empty(p.groups, p.shares, *rows[1:]) for _ in range(3))
        weight = s.new_empty(p.groups, p.shares, rows[1])
        fore.pool_kernel[grid](x, v, center, value_center, *maps, *share, **p.meta)
        center = center.sum(1)
        torch.linalg.vector_norm(center, dim=-1, out=length)
        torch.div(center, length.clamp_min(fore.EPS.value).unsqueeze(-1), out=unit)
        fore.assign_kernel[grid](
            *(x, v, unit, alpha, beta, s, index, sums, weight, *maps, p.points, *share),
            BY_COUNT=by_count,
            **p.meta,
        )
        torch.add(weight.sum(1), 1, out=total)
        torch.div(sums.sum(1) + value_center.sum(1), total.unsqueeze(-1), out=g)
        meta = {k: value for k, value in p.meta.items() if k != 'BLOCK_M'}
        fore.dispatch_kernel[grid](out, g, s, index, *p.sizes, p.points, *share, **meta)
    return out, *saved


def backward(grad, x, v, alpha, saved, grad_x, grad_v, proposals, folds, by_count):
    """Run the backward kernels.

    Args:
        grad (Tensor): (B, H, W, E, D), gradient of the output.
        x (Tensor): (B, H, W, E, D), as in the forward pass.
        v (Tensor): (B, H, W, E, D), as in the forward pass.
        alpha (Tensor): One float32 element.
        saved (tuple[Tensor]): What :func:`forward` returned beside the output.
        grad_x (Tensor): (B, H, W, E, D), any strides, is written.
        grad_v (Tensor): (B, H, W, E, D), any strides, is written.
        proposals (tuple[int, int]): Centers per region.
        folds (tuple[int, int]): Regions.
        by_count (bool): What aggregates are divided by.

    Returns:
        tuple[Tensor, Tensor]: Gradients of alpha and beta, float32 without dimensions.
    """
    s, index, g, total, unit, length = saved
    p = plan(x, proposals, folds, [x, v, grad, grad_x, grad_v])
    scalars = s.new_empty(p.groups * p.shares, 2)
    if not p.groups:
        return scalars.sum(0).unbind()
    pull = torch.empty_like(s)
    shrink = torch.empty_like(total)
    xv = (*x.stride(), *v.stride())
    sizes = (*p.sizes, p.points, p.share, p.shares)
    with _device(x):
        if p.shares == 1:
            back.backward_kernel[(p.groups,)](
                *(x, v, grad, grad_x, grad_v, alpha, s, index, g, total, unit, length),
                *(pull, torch.empty_like(g), shrink, scalars),
                *(*xv, *grad.stride(), *grad_x.stride(), *grad_v.stride(), *p.sizes, p.points),
                BY_COUNT=by_count,
                **p.meta,
            )
            return scalars.sum(0).unbind()
        grid = (p.groups * p.shares,)
        parts, unit_parts = (g.new_empty(p.groups, p.shares, *g.shape[1:]) for _ in range(2))
        back.collect_kernel[grid](grad, s, index, parts, *grad.stride(), *sizes, **p.meta)
        grad_g = parts.sum(1) / total.unsqueeze(-1)
        shrink = shrink.zero_() if by_count else (grad_g * g).sum(-1)
        back.values_gradient_kernel[grid](
            *(x, v, grad, grad_v, alpha, s, index, g, unit, pull, grad_g, shrink, unit_parts),
            *(scalars, *xv, *grad.stride(), *grad_v.stride(), *sizes),
            **p.meta,
        )
        grad_unit = unit_parts.sum(1)
        radial = (grad_unit * unit).sum(-1).where(length > fore.EPS.value, 0)
        grad_center = grad_unit - unit * radial.unsqueeze(-1)
        grad_center = grad_center / length.clamp_min(fore.EPS.value).unsqueeze(-1)
        back.features_gradient_kernel[grid](
            *(x, grad_x, grad_center, unit, pull, index, *x.stride(), *grad_x.stride(), *sizes),
            **p.meta,
        )
    return scalars.sum(0).unbind()


def _device(x):
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
