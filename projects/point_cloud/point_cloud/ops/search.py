"""Farthest point sampling and neighbor search, in PyTorch and Triton.

Both backends compute ``(dx * dx + dy * dy) + dz * dz`` with one rounding per operation and
break ties towards the lower index, so they return the same indices, on every device.
"""

import importlib.util
import os

import torch

from projects.point_cloud.point_cloud.errors import PointCloudError

# Distances alive at once in the PyTorch neighbour search: 16 MiB in float32.
CHUNK = 1 << 22
# A program of the kernels holds a whole cloud in registers and shared memory.
TRITON_POINTS = 16384
BACKENDS = ('torch', 'triton')


def can_run_triton(points, raise_error=False):
    """Whether the Triton kernels run on these points, (B, N, 3).

    They take clouds of up to 16 384 points on a CUDA device, or on any device under
    ``TRITON_INTERPRET=1``.
    """
    reason = None
    interpreted = os.environ.get('TRITON_INTERPRET', '0') == '1'
    if importlib.util.find_spec('triton') is None:
        reason = 'triton is not installed'
    elif not points.is_cuda and not interpreted:
        reason = f'the points are on {points.device.type}, not on a CUDA device'
    elif points.shape[1] > TRITON_POINTS:
        reason = f'a cloud has {points.shape[1]} points; at most {TRITON_POINTS} fit a program'
    if reason and raise_error:
        raise RuntimeError(f'the triton backend cannot run: {reason}')
    return reason is None


def farthest_point_sample(points, number, start=0, backend=None):
    """Choose points one by one, each the farthest from those already chosen.

    Farthest point sampling of PointNet++ (`arXiv 1706.02413
    <https://arxiv.org/abs/1706.02413>`_, section 3.2). Of points equally far the first is
    chosen. Where fewer distinct points than ``number`` exist, indices repeat.

    Args:
        points (Tensor): (B, N, 3); precision below float32 is raised to it.
        number (int): Points to choose, 1 to N.
        start (int | Tensor | str): The first choice: an index for every cloud, a tensor (B,) of
            indices, or 'random'.
        backend (str | None): 'torch', 'triton', or None for the fastest that can run.

    Returns:
        Tensor: (B, number), int64 indices in the order of choice.
    """
    points = _checked(points, 'points')
    batch, length = points.shape[:2]
    if not 1 <= number <= length:
        raise PointCloudError(f'cannot sample {number} of {length} points: 1 to {length} can be')
    first = _first(start, batch, length, points.device)
    if batch == 0:
        return first.new_zeros(0, number)
    if _choose(points, backend) == 'triton':
        from projects.point_cloud.point_cloud.ops.triton_kernels import sample

        return sample(points, number, first)
    return _sample(points, number, first)


def nearest_neighbours(queries, points, number, backend=None):
    """Find the nearest points of every query.

    Args:
        queries (Tensor): (B, S, 3), float32 or float64.
        points (Tensor): (B, N, 3), same dtype and device.
        number (int): Neighbors per query, 1 to N.
        backend (str | None): 'torch', 'triton', or None for the fastest that can run.

    Returns:
        Tensor: (B, S, number), int64 indices into ``points``, nearest first; of points equally
        near the lower index comes first.
    """
    queries, points = _checked(queries, 'queries'), _checked(points, 'points')
    if queries.shape[0] != points.shape[0] or queries.dtype != points.dtype:
        raise PointCloudError(
            f'queries {tuple(queries.shape)} {queries.dtype} and points {tuple(points.shape)} '
            f'{points.dtype} must have one batch size and dtype'
        )
    length = points.shape[1]
    if not 1 <= number <= length:
        raise PointCloudError(f'cannot find {number} neighbours among {length} points')
    if 0 in queries.shape:
        return torch.zeros(*queries.shape[:2], number, dtype=torch.int64, device=points.device)
    if _choose(points, backend) == 'triton':
        from projects.point_cloud.point_cloud.ops.triton_kernels import neighbours

        return neighbours(queries, points, number)
    rows = max(1, CHUNK // length)
    by_cloud = max(1, rows // queries.shape[1])
    found = []
    for cloud in range(0, len(points), by_cloud):
        part = slice(cloud, cloud + by_cloud)
        chunks = queries[part].split(rows, dim=1)
        found.append(torch.cat([_neighbours(q, points[part], number) for q in chunks], dim=1))
    return torch.cat(found)


def gather_points(features, index):
    """Take rows of ``features`` (B, N, C) by ``index`` (B, ...): (B, ..., C)."""
    batch, length, channels = features.shape
    offset = torch.arange(batch, device=index.device) * length
    flat = (index + offset.view(-1, *[1] * (index.dim() - 1))).flatten()
    return features.reshape(-1, channels).index_select(0, flat).view(*index.shape, channels)


def _sample(points, number, first):
    x, y, z = (axis.contiguous() for axis in points.unbind(-1))
    chosen = first.new_empty(len(points), number)
    nearest = torch.full_like(x, float('inf'))  # squared distance to the chosen points
    distance, square = torch.empty_like(x), torch.empty_like(x)
    index = first.unsqueeze(1)
    for i in range(number):
        chosen[:, i : i + 1] = index
        if i == number - 1:
            break
        torch.sub(x, x.gather(1, index), out=distance).mul_(distance)
        for axis in (y, z):
            torch.sub(axis, axis.gather(1, index), out=square).mul_(square)
            distance.add_(square)
        torch.minimum(nearest, distance, out=nearest)
        index = nearest.argmax(1, keepdim=True)  # the first of equals
    return chosen


def _neighbours(queries, points, number):
    distance = torch.zeros((), dtype=points.dtype, device=points.device)
    for axis in range(3):
        step = queries[..., axis].unsqueeze(2) - points[..., axis].unsqueeze(1)
        distance = step.mul_(step).add_(distance) if axis else step.mul_(step)
    # topk chooses freely among equals: look whether the first left out equals the last taken.
    length = points.shape[1]
    values, index = distance.topk(min(number + 1, length), largest=False)
    if length > number:
        tied = values[..., number - 1] == values[..., number]
        index = index[..., :number]
        if tied.any():
            order = distance[tied].sort(stable=True).indices[:, :number]
            index = index.contiguous()
            index[tied] = order
    index = index.sort(-1).values
    order = distance.gather(-1, index).sort(stable=True).indices
    return index.gather(-1, order)


def _checked(points, name):
    if points.dim() != 3 or points.shape[-1] != 3 or not points.is_floating_point():
        raise PointCloudError(
            f'{name} must be (clouds, points, 3) floating-point numbers, got '
            f'{tuple(points.shape)} {points.dtype}'
        )
    # An index carries no gradient.
    return points.detach().to(torch.promote_types(points.dtype, torch.float32))


def _first(start, batch, length, device):
    if isinstance(start, torch.Tensor):
        if start.shape != (batch,):
            raise PointCloudError(f'start must be ({batch},), got {tuple(start.shape)}')
        return start.to(device, torch.int64)
    if start == 'random':
        return torch.randint(length, (batch,), device=device)
    if not isinstance(start, int) or not 0 <= start < length:
        raise PointCloudError(f"start must be 'random' or an index below {length}, got {start!r}")
    return torch.full((batch,), start, device=device)


def _choose(points, backend):
    if backend is None:
        return 'triton' if can_run_triton(points) else 'torch'
    if backend not in BACKENDS:
        raise PointCloudError(f'unknown backend {backend!r}: choose one of {BACKENDS}')
    if backend == 'triton':
        can_run_triton(points, raise_error=True)
    return backend
