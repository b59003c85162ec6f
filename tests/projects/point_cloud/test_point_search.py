"""Sampling and search against their definitions, and the two backends against each other."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip('coc_mm')
from projects.point_cloud.point_cloud.ops import (
    farthest_point_sample,
    gather_points,
    nearest_neighbours,
    search,
)

ROOT = os.path.dirname(os.path.dirname(search.__file__)).rsplit('/projects/', 1)[0]


def distances(first, second):
    step = first - second
    square = step * step
    return (square[..., 0] + square[..., 1]) + square[..., 2]


def run_python(code, **environment):
    environment = dict(os.environ, PYTHONPATH=ROOT, OMP_NUM_THREADS='1', **environment)
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def plain_sample(points, number, start):
    """The definition, cloud by cloud."""
    out = []
    for cloud in points:
        chosen = [start]
        while len(chosen) < number:
            chosen.append(int(distances(cloud[:, None], cloud[chosen]).min(1).values.argmax()))
        out.append(chosen)
    return torch.tensor(out)


def plain_neighbours(queries, points, number):
    distance = distances(queries.unsqueeze(2), points.unsqueeze(1))
    return distance.sort(stable=True).indices[..., :number]


def clouds(batch, length, dtype, grid):
    points = torch.rand(batch, length, 3, dtype=dtype)
    return (points * 3).round() / 3 if grid else points


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('grid', [False, True], ids=['random', 'ties'])
@pytest.mark.parametrize(('batch', 'length', 'number'), [(2, 37, 13), (1, 64, 64), (3, 1, 1)])
def test_definitions(batch, length, number, grid, dtype):
    points = clouds(batch, length, dtype, grid)
    start = length // 2
    chosen = farthest_point_sample(points, number, start)
    assert torch.equal(chosen, plain_sample(points, number, start))
    queries = gather_points(points, chosen)
    found = nearest_neighbours(queries, points, min(9, length))
    assert torch.equal(found, plain_neighbours(queries, points, min(9, length)))


def test_starts_and_gradients():
    points = clouds(4, 30, torch.float32, False).requires_grad_()
    assert farthest_point_sample(points, 3, 5)[:, 0].tolist() == [5] * 4
    starts = torch.tensor([3, 0, 29, 7])
    assert torch.equal(farthest_point_sample(points, 5, starts)[:, 0], starts)
    firsts = {tuple(farthest_point_sample(points, 1, 'random')[:, 0].tolist()) for _ in range(8)}
    assert len(firsts) > 1
    index = torch.randint(30, (4, 5, 2))
    gather_points(points, index).sum().backward()
    counts = torch.stack([torch.bincount(i.flatten(), minlength=30) for i in index])
    assert torch.equal(points.grad, counts[..., None].float().expand(-1, -1, 3))


@pytest.mark.parametrize(
    ('call', 'text'),
    [
        (lambda p: farthest_point_sample(p, 11), 'cannot sample 11 of 10'),
        (lambda p: farthest_point_sample(p.transpose(1, 2), 2), r'\(clouds, points, 3\)'),
        (lambda p: farthest_point_sample(p, 2, backend='cuda'), 'unknown backend'),
        (lambda p: nearest_neighbours(p, p, 11), '11 neighbours among 10'),
    ],
)
def test_what_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call(torch.rand(2, 10, 3))


def test_triton_finds_the_same_indices():
    """In the interpreter, which has to be chosen before triton is imported."""
    pytest.importorskip('triton')
    code = """
import torch
from projects.point_cloud.point_cloud.ops import *
torch.manual_seed(0)
cases = 0
for length, number, count, grid, dtype in [
    (21, 7, 3, False, torch.float32),
    (9, 9, 4, True, torch.float64),
    (1, 1, 1, False, torch.float32),
]:
    p = torch.rand(2, length, 3, dtype=dtype)
    p = (p * 2).round() if grid else p
    both = [farthest_point_sample(p, number, 0, backend) for backend in ('torch', 'triton')]
    assert torch.equal(*both), (length, 'sample')
    q = gather_points(p, both[0])
    both = [nearest_neighbours(q, p, count, backend) for backend in ('torch', 'triton')]
    assert torch.equal(*both), (length, 'neighbours')
    cases += 1
assert cases == 3
"""
    run_python(code, TRITON_INTERPRET='1')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_cuda_finds_the_same_indices(dtype):
    points = torch.rand(4, 1024, 3, dtype=dtype)
    chosen = farthest_point_sample(points, 512)
    assert torch.equal(farthest_point_sample(points.cuda(), 512, backend='triton').cpu(), chosen)
    assert torch.equal(farthest_point_sample(points.cuda(), 512, backend='torch').cpu(), chosen)
    queries = gather_points(points, chosen)
    found = nearest_neighbours(queries, points, 24)
    for backend in ('torch', 'triton'):
        on_gpu = nearest_neighbours(queries.cuda(), points.cuda(), 24, backend)
        assert torch.equal(on_gpu.cpu(), found)
