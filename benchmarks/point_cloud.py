#!/usr/bin/env python
"""Points per second and memory of the point-cloud project, against plain broadcasting.

    OMP_NUM_THREADS=2 python benchmarks/point_cloud.py [--device cuda] [--out FILE.csv]

Each part is timed beside its plain version, in turns in one process, after both gave the same
result. The plain versions are what the equations say, with a tensor of (clouds, centers, points,
3) for distances and the reference backend of the cluster operator. Median and spread (upper less
lower quartile) are in points per second, where points are those that go in. Peak memory is what
one call adds: allocated on a GPU, resident on a CPU (Linux; empty elsewhere).
"""

import argparse
import csv
import ctypes
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

import torch  # noqa: E402

from projects.point_cloud.point_cloud.models import PointMLPCoC  # noqa: E402
from projects.point_cloud.point_cloud.models.layers import GroupCluster  # noqa: E402
from projects.point_cloud.point_cloud.ops import (  # noqa: E402
    farthest_point_sample,
    gather_points,
    nearest_neighbours,
)

COLUMNS = ('commit', 'torch', 'device', 'threads', 'dtype', 'shape', 'what')
COLUMNS += ('median points/s', 'spread points/s', 'peak memory MiB')


def plain_distance(queries, points):
    """All squared distances by one broadcast.

    Args:
        queries (Tensor): (B, S, 3).
        points (Tensor): (B, N, 3).

    Returns:
        Tensor: (B, S, N).
    """
    return (queries.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1)


def plain_sample(points, number):
    """Farthest point sampling with whole tensors in each of its steps.

    Args:
        points (Tensor): (B, N, 3).
        number (int): Points to choose.

    Returns:
        Tensor: (B, number).
    """
    rows = torch.arange(len(points), device=points.device)
    chosen = [torch.zeros_like(rows)]
    nearest = torch.full(points.shape[:2], float('inf'), device=points.device)
    while len(chosen) < number:
        distance = (points - points[rows, chosen[-1]].unsqueeze(1)).square().sum(-1)
        nearest = torch.minimum(nearest, distance)
        chosen.append(nearest.max(-1).indices)
    return torch.stack(chosen, 1)


def plain_neighbours(queries, points, number):
    """Neighbours from all distances at once; see ``nearest_neighbours``.

    Args:
        queries (Tensor): (B, S, 3).
        points (Tensor): (B, N, 3).
        number (int): Neighbours.

    Returns:
        Tensor: (B, S, number), sorted by index.
    """
    return plain_distance(queries, points).topk(number, largest=False).indices.sort(-1).values


def gradient(layer, x):
    """Run a layer forward and backward.

    Args:
        layer (nn.Module): The layer.
        x (Tensor): Its input.

    Returns:
        Tensor: The gradient of the sum of squares of the output.
    """
    x = x.detach().requires_grad_()
    return torch.autograd.grad(layer(x).square().sum(), x)[0]


def cases(device, batch):
    """Yield what is measured.

    Args:
        device (torch.device): Where.
        batch (int): Clouds.

    Yields:
        tuple: Name, shape, points that go in, and the two functions, ours first.
    """
    torch.manual_seed(0)
    points = torch.rand(batch, 1024, 3, device=device)
    shape = f'{batch}x1024x3'
    yield (
        'sample 512 farthest', shape, batch * 1024,
        lambda: farthest_point_sample(points, 512), lambda: plain_sample(points, 512),
    )  # fmt: skip
    queries = gather_points(points, farthest_point_sample(points, 512))
    yield (
        '24 neighbours of 512', shape, batch * 1024,
        lambda: nearest_neighbours(queries, points, 24).sort(-1).values,
        lambda: plain_neighbours(queries, points, 24),
    )  # fmt: skip
    layer, reference = (GroupCluster(128, backend=b).to(device) for b in (None, 'reference'))
    reference.load_state_dict(layer.state_dict())
    grouped = torch.randn(batch * 512, 24, 128, device=device)
    yield (
        'train cluster of each group', f'{batch * 512}x24x128', batch * 512 * 24,
        lambda: gradient(layer, grouped), lambda: gradient(reference, grouped),
    )  # fmt: skip
    model = PointMLPCoC().to(device).eval()
    clouds = points.transpose(1, 2)
    plain = patch.multiple(
        'projects.point_cloud.point_cloud.models.layers',
        farthest_point_sample=lambda points, number, start, backend: plain_sample(points, number),
        nearest_neighbours=lambda q, points, number, backend: plain_neighbours(q, points, number),
    )

    def plainly():
        with torch.inference_mode(), plain:
            return model(clouds)

    def ours():
        with torch.inference_mode():
            return model(clouds)

    yield 'PointMLPCoC logits', shape, batch * 1024, ours, plainly


def seconds(function, device):
    """Time one call."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _resident(field):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_memory(function, device):
    """Measure what one call adds at its height, in MiB; None where that cannot be told."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    except OSError:
        return None
    before = _resident('VmRSS')
    function()
    return max(0.0, _resident('VmHWM') - before)


def measure(device, batch, repeats):
    """Time all cases; yield rows of the table.

    Args:
        device (torch.device): Where.
        batch (int): Clouds.
        repeats (int): Timed calls of each version.

    Yields:
        dict: By :data:`COLUMNS`.

    Raises:
        AssertionError: A plain version gives another result; nothing is timed then.
    """
    git = ['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'
    for what, shape, count, ours, plain in cases(device, batch):
        torch.testing.assert_close(ours(), plain(), rtol=1e-3, atol=1e-4)
        times = {'ours': [], 'plain': []}
        for _ in range(repeats):
            for version, function in (('ours', ours), ('plain', plain)):
                times[version].append(count / seconds(function, device))
        for version, function in (('ours', ours), ('plain', plain)):
            memory = peak_memory(function, device)
            quarter = statistics.quantiles(times[version], n=4)
            values = (commit, torch.__version__, name, torch.get_num_threads(), 'float32', shape)
            values += (f'{what}, {version}', f'{statistics.median(times[version]):.4g}')
            values += (f'{quarter[2] - quarter[0]:.2g}', '' if memory is None else f'{memory:.1f}')
            yield dict(zip(COLUMNS, values, strict=True))


def main():
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, default=8, help='clouds; default: 8')
    parser.add_argument('--repeats', type=int, default=7, help='timed calls; default: 7')
    parser.add_argument('--out', default=str(ROOT / 'benchmarks/results/point_cloud.csv'))
    args = parser.parse_args()
    rows = list(measure(torch.device(args.device), args.batch, args.repeats))
    path = Path(args.out)
    # Rows of other devices stay.
    kept = []
    if path.is_file():
        with path.open(newline='') as file:
            kept = [row for row in csv.DictReader(file) if row['device'] != rows[0]['device']]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(kept + rows)
    for row in rows:
        print(*row.values(), sep='  ')
    print(f'wrote {os.path.relpath(path)}')


if __name__ == '__main__':
    main()
