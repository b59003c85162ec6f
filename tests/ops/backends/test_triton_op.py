"""When the Triton kernels run, what happens where they fail, and their tests in the interpreter."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ops_cases import assert_all_close

from coc_mm.ops import can_run_triton, context_cluster, context_cluster_packed
from coc_mm.ops.backends import triton_op as backend

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(not backend.INSTALLED, reason='triton is not installed')


def on_cuda(channels=32, dtype=torch.bfloat16, batch=2):
    """Stand for points on a GPU, which need not be there."""
    shape = torch.Size((batch, 56, 56, 4, channels))
    return SimpleNamespace(device=torch.device('cuda', 0), dtype=dtype, shape=shape)


@pytest.fixture
def gpu(monkeypatch):
    """Stand for a GPU of compute capability 9.0."""
    monkeypatch.setattr(backend, 'INSTALLED', True)
    monkeypatch.setattr(backend, '_failure', None)
    monkeypatch.setattr(backend, '_capability', lambda index: (9, 0))


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason='runs on the GPU itself')
def test_through_the_interpreter():
    """Run the tests of the kernels in a process in which Triton interprets them."""
    result = subprocess.run(
        [
            *(sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider'),
            str(Path(__file__).with_name('test_triton_kernels.py')),
        ],
        env={**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert int(re.search(r'(\d+) passed', result.stdout)[1]) >= 30


def test_runs_on_a_gpu(gpu):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for channels, proposals in [(5, (1, 1)), (64, (8, 8)), (128, (8, 8)), (32, (16, 16))]:
            assert can_run_triton(on_cuda(channels, dtype), proposals, raise_error=True)


@pytest.mark.parametrize(
    ('points', 'setting', 'machine', 'reason'),
    [
        (on_cuda(dtype=torch.float64), {}, {}, 'torch.float64, not one of torch.float32'),
        (on_cuda(129), {}, {}, '129 channels per head are more than 128'),
        (on_cuda(), dict(proposals=(17, 17)), {}, '289 centers per region are more than 256'),
        (on_cuda(128), dict(proposals=(9, 9)), {}, '81 centers of 128 channels .* 8192'),
        (on_cuda(batch=2**24), dict(folds=(8, 8)), {}, 'heads are 4294967296, more than 2147'),
        (on_cuda(), {}, dict(INSTALLED=False), 'triton is not installed'),
        (on_cuda(), {}, dict(_capability=lambda i: (7, 5)), 'compute capability 7.5 is below 8.0'),
        (on_cuda(), {}, dict(_capability=lambda i: None), 'built for ROCm'),
        (on_cuda(), {}, dict(_failure='kernels failed before'), 'kernels failed before'),
    ],
)
def test_refusals(gpu, monkeypatch, points, setting, machine, reason):
    for name, value in machine.items():
        monkeypatch.setattr(backend, name, value)
    assert not can_run_triton(points, **setting)
    with pytest.raises(RuntimeError, match=f"'triton' backend cannot run: .*{reason}"):
        can_run_triton(points, raise_error=True, **setting)


@needs_triton
@pytest.mark.skipif(backend.INTERPRETED, reason='the interpreter takes the CPU')
def test_never_falls_back_silently(monkeypatch):
    inputs = torch.randn(1, 4, 4, 2, 1, 3), torch.ones(1), torch.zeros(1)
    with pytest.raises(RuntimeError, match='on cpu, not on a CUDA device'):
        context_cluster_packed(*inputs, backend='triton')
    expected = context_cluster_packed(*inputs, backend='matmul')
    assert torch.equal(context_cluster_packed(*inputs), expected)
    monkeypatch.setenv('COC_MM_BACKEND', 'triton')
    with pytest.raises(RuntimeError, match='on cpu, not on a CUDA device'):
        context_cluster_packed(*inputs)


@pytest.fixture(params=['forward', 'backward'])
def broken(request, monkeypatch):
    """Kernels of which the forward or the backward pass cannot be launched."""
    from coc_mm.ops.backends.triton_kernels import launch

    def fail(*args):
        raise RuntimeError('out of resource: shared memory')

    def work(x, v, alpha, beta, proposals, folds, by_count):
        out = context_cluster(x, v, alpha, beta, tuple(proposals), tuple(folds), backend='matmul')
        return out.contiguous(), *backend._new_saved(x, v, alpha, proposals, folds)

    monkeypatch.setattr(backend, '_failure', None)
    monkeypatch.setattr(launch, 'forward', fail if request.param == 'forward' else work)
    monkeypatch.setattr(launch, 'backward', fail)


def differentiate(function, spaces, *args, **kwargs):
    leaves = [t.clone().requires_grad_() for t in (*spaces, torch.ones(1), torch.zeros(1))]
    points = leaves[: len(spaces)] if len(spaces) == 2 else (leaves[0], None)
    out = function(*points, *leaves[-2:], (2, 1), (1, 2), 'similarity', *args, **kwargs)
    out.square().sum().backward()
    return [out.detach(), *(t.grad for t in leaves)]


@needs_triton
@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('compiled', [False, True])
def test_kernels_that_fail_are_replaced_once_and_for_all(broken, packed, compiled):
    projected = torch.randn(2, 4, 5, 2, 1, 3)
    spaces = [projected] if packed else projected.unbind(-3)
    expected = differentiate(context_cluster, projected.unbind(-3), backend='matmul')
    function = torch.compile(backend.forward, backend='aot_eager') if compiled else backend.forward
    with pytest.warns(UserWarning, match='kernels of context_cluster failed') as caught:
        first = differentiate(function, spaces, can_fall_back=True)
    report = str(caught[0].message)
    for part in (torch.__version__, 'Triton', '(2, 4, 5', 'float32', '([2, 1], [1, 2], False)'):
        assert part in report
    assert 'RuntimeError: out of resource: shared memory' in report
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        again = differentiate(function, spaces, can_fall_back=True)
    if packed:
        expected[1:3] = [torch.stack(expected[1:3], -3)]
    for results in (first, again):
        assert_all_close(results, expected)
    assert 'failed before in this process (RuntimeError: out of resource' in backend._failure


@needs_triton
def test_kernels_asked_for_by_name_are_not_replaced(broken):
    with pytest.raises(RuntimeError, match='out of resource: shared memory'):
        differentiate(backend.forward, [torch.randn(1, 4, 4, 2, 1, 3)])
    assert backend._failure is None


@needs_triton
@pytest.mark.skipif(
    backend.INTERPRETED or torch.cuda.is_available(), reason='interpreted, or compiled anyhow'
)
def test_every_kernel_compiles(monkeypatch, tmp_path):
    """To machine code of compute capability 9.0, without a GPU, as the launches would have it."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from coc_mm.ops.backends.triton_kernels import launch

    gpu = SimpleNamespace(
        get_current_target=lambda: GPUTarget('cuda', 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    compiled = {}
    compile_and_run = JITFunction.run

    def compile_only(self, *args, warmup, **kwargs):
        kernel = compile_and_run(self, *args, warmup=True, **kwargs)
        compiled.setdefault(self.__name__, []).append(kernel)

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(JITFunction, 'run', compile_only)
    driver.set_active(gpu)
    try:
        # Regions for one program each, then regions split: what autograd may hand in, too. Strides
        # and alignment ask for no other code.
        unaligned = torch.zeros(1 + 2 * 7 * 7 * 2 * 4 * 24, dtype=torch.bfloat16)[1:]
        for points in (
            torch.zeros(2, 7, 7, 2, 4, 24, dtype=torch.bfloat16),
            unaligned.reshape(4, 24, 2, 7, 7, 2).permute(2, 3, 4, 5, 0, 1),
            torch.zeros(1, 40, 40, 2, 3, 5, dtype=torch.float16),
        ):
            x, v = points.unbind(-3)
            alpha, beta = torch.ones(1), torch.zeros(1)
            out, *saved = launch.forward(x, v, alpha, beta, (2, 2), (1, 1), False)
            grads = torch.empty_like(points, memory_format=torch.contiguous_format).unbind(-3)
            grad = out.new_ones(()).expand_as(out)
            launch.backward(grad, x, v, alpha, tuple(saved), *grads, (2, 2), (1, 1), False)
    finally:
        driver.set_active(None)  # whatever the machine has
    assert len(compiled) == 8
    assert sum(map(len, compiled.values())) == 10
    for name, kernels in compiled.items():
        assert len({id(kernel) for kernel in kernels}) == 1, name
        assert kernels[0].metadata.shared <= 99 * 1024, name
    # 24 channels, no multiple of the 16 that Triton looks for, are still loaded 16 bytes at a time.
    ptx = compiled['forward_kernel'][0].asm['ptx']
    assert ptx.count('cp.async.cg.shared.global') >= 8
