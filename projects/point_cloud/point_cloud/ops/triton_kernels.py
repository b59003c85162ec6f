"""Farthest point sampling and neighbor search as Triton kernels.

A program holds all distances of one cloud (or of one query) on chip; nothing of size
(points, points) exists. Fused multiply-adds are switched off at the launch, so that
distances round as PyTorch's do and the same indices come out.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _sample_kernel(points, first, chosen, length, number, block: tl.constexpr):
    cloud = tl.program_id(0).to(tl.int64)
    points += cloud * 3 * length  # planar: all x, all y, all z
    chosen += cloud * number
    lane = tl.arange(0, block)
    inside = lane < length
    x = tl.load(points + lane, mask=inside, other=0)
    y = tl.load(points + length + lane, mask=inside, other=0)
    z = tl.load(points + 2 * length + lane, mask=inside, other=0)
    nearest = tl.where(inside, float('inf'), -1.0).to(x.dtype)
    index = tl.load(first + cloud).to(tl.int32)
    for i in range(number):
        tl.store(chosen + i, index.to(tl.int64))
        dx = x - tl.load(points + index)
        dy = y - tl.load(points + length + index)
        dz = z - tl.load(points + 2 * length + index)
        distance = (dx * dx + dy * dy) + dz * dz
        nearest = tl.where(inside, tl.minimum(nearest, distance), -1.0).to(x.dtype)
        # Not-a-number must not lead outside of the cloud.
        index = tl.minimum(tl.argmax(nearest, 0, tie_break_left=True), length - 1)


@triton.jit
def _neighbour_kernel(queries, points, found, length, count, number, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cloud = row // count
    points += cloud * 3 * length
    lane = tl.arange(0, block)
    inside = lane < length
    dx = tl.load(queries + row * 3) - tl.load(points + lane, mask=inside, other=0)
    dy = tl.load(queries + row * 3 + 1) - tl.load(points + length + lane, mask=inside, other=0)
    dz = tl.load(queries + row * 3 + 2) - tl.load(points + 2 * length + lane, mask=inside, other=0)
    distance = (dx * dx + dy * dy) + dz * dz
    distance = tl.where(inside, distance, float('inf'))
    for i in range(number):
        index = tl.minimum(tl.argmin(distance, 0, tie_break_left=True), length - 1)
        tl.store(found + row * number + i, index.to(tl.int64))
        distance = tl.where(lane == index, float('inf'), distance)


def _launch(length):
    block = max(16, triton.next_power_of_2(length))
    return dict(block=block, num_warps=min(16, max(1, block // 256)), enable_fp_fusion=False)


def sample(points, number, first):
    """Sample farthest points; see :func:`..search.farthest_point_sample`."""
    batch, length = points.shape[:2]
    planar = points.transpose(1, 2).contiguous()
    chosen = torch.empty(batch, number, dtype=torch.int64, device=points.device)
    _sample_kernel[(batch,)](planar, first, chosen, length, number, **_launch(length))
    return chosen


def neighbours(queries, points, number):
    """Find nearest points; see :func:`..search.nearest_neighbours`."""
    batch, count = queries.shape[:2]
    length = points.shape[1]
    planar = points.transpose(1, 2).contiguous()
    found = torch.empty(batch, count, number, dtype=torch.int64, device=points.device)
    _neighbour_kernel[(batch * count,)](
        queries.contiguous(), planar, found, length, count, number, **_launch(length)
    )
    return found
