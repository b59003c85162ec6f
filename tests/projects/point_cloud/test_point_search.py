"""Sampling and search against their definitions, and the two backends against each other."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip('coc_mm')
from projects.point_cloud.point_cloud.ops import (
    can_run_triton,
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


def test_chunks_change_nothing(monkeypatch):
    points = clouds(3, 50, torch.float32, True)
    whole = nearest_neighbours(points, points, 7)
    sizes = []
    original = search._neighbours
    monkeypatch.setattr(
        search,
        '_neighbours',
        lambda q, p, k: sizes.append((len(q), q.shape[1])) or original(q, p, k),
    )
    for chunk in (1, 50 * 7, 50 * 50 * 2):
        sizes.clear()
        monkeypatch.setattr(search, 'CHUNK', chunk)
        assert torch.equal(nearest_neighbours(points, points, 7), whole)
        assert sum(clouds_ * rows for clouds_, rows in sizes) == 150
        assert max(clouds_ * rows * 50 for clouds_, rows in sizes) <= max(chunk, 50)


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


def test_half_precision_and_empty_batches():
    points = clouds(1, 40, torch.float32, False).half()
    assert torch.equal(farthest_point_sample(points, 8), farthest_point_sample(points.float(), 8))
    empty = torch.zeros(0, 10, 3)
    assert farthest_point_sample(empty, 4).shape == (0, 4)
    assert nearest_neighbours(empty, empty, 4).shape == (0, 10, 4)


@pytest.mark.parametrize(
    ('call', 'text'),
    [
        (lambda p: farthest_point_sample(p, 11), 'cannot sample 11 of 10'),
        (lambda p: farthest_point_sample(p, 0), 'cannot sample 0 of 10'),
        (lambda p: farthest_point_sample(p.transpose(1, 2), 2), r'\(clouds, points, 3\)'),
        (lambda p: farthest_point_sample(p.long(), 2), 'floating-point'),
        (lambda p: farthest_point_sample(p, 2, start=10), 'below 10'),
        (lambda p: farthest_point_sample(p, 2, start=torch.zeros(3)), r'\(2,\)'),
        (lambda p: farthest_point_sample(p, 2, backend='cuda'), 'unknown backend'),
        (lambda p: nearest_neighbours(p, p, 11), '11 neighbours among 10'),
        (lambda p: nearest_neighbours(p[:1], p, 2), 'one batch size'),
    ],
)
def test_what_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call(torch.rand(2, 10, 3))


def test_triton_says_why_it_cannot_run(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    assert not can_run_triton(torch.rand(1, 4, 3))
    with pytest.raises(RuntimeError, match=r'not installed|on cpu, not on a CUDA device'):
        farthest_point_sample(torch.rand(1, 4, 3), 2, backend='triton')


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


def test_kernels_compile_without_contraction():
    """For a GPU that need not be here: a fused multiply-add would round otherwise than PyTorch."""
    pytest.importorskip('triton')
    if os.environ.get('TRITON_INTERPRET') == '1':
        pytest.skip('interpreted kernels are not compiled')
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from projects.point_cloud.point_cloud.ops import triton_kernels as kernels
launch = kernels._launch(1000)
constants = dict(block=launch.pop('block'))
pairs = dict(length='i32', number='i32', block='constexpr')
for name, signature in dict(
    _sample_kernel=dict(points='*fp32', first='*i64', chosen='*i64', **pairs),
    _neighbour_kernel=dict(queries='*fp32', points='*fp32', found='*i64', count='i32', **pairs),
).items():
    kernel = getattr(kernels, name)
    source = ASTSource(kernel, {n: signature[n] for n in kernel.arg_names}, constexprs=constants)
    ptx = triton.compile(source, target=GPUTarget('cuda', 80, 32), options=launch).asm['ptx']
    print(ptx.count('mul.rn.f32') + ptx.count('mul.f32'), ptx.count('fma.rn'))
"""
    counts = [[int(n) for n in line.split()] for line in run_python(code).splitlines()]
    assert len(counts) == 2
    for products, fused in counts:
        assert products >= 3
        assert fused == 0


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
