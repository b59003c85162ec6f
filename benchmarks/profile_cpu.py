"""Where the time of a case of ``run.py`` goes on the CPU: by kind of kernel, against the ceiling.

OMP_NUM_THREADS=2 python benchmarks/profile_cpu.py inference-small training-small
"""

import argparse
import math
import warnings

import torch
from rich.console import Console
from rich.table import Table
from run import GOALS, Case, matmul_rate

KINDS = {
    'matrix products': ('addmm', 'addmm_', 'mm', 'bmm', 'baddbmm'),
    'convolutions': ('mkldnn_convolution', 'convolution_backward'),
    'GELU': ('gelu', 'gelu_backward'),
    'copies': ('copy_', 'fill_', 'cat', 'index'),
    'sums over clusters': (
        *('sort', 'bincount', 'scatter_add_', '_embedding_bag_forward_only'),
        *('_embedding_bag_per_sample_weights_backward', '_embedding_bag_dense_backward'),
    ),
    'norms': ('native_group_norm', 'native_group_norm_backward', 'linalg_vector_norm', 'addcmul'),
}


def flops_of(event):
    """Return the floating point operations of the matrix products of one kind and shape.

    Args:
        event (FunctionEventAvg): With input shapes.

    Returns:
        int: Twice the multiply-adds.
    """
    a, b = [shape for shape in event.input_shapes if len(shape) > 1][-2:]
    return 2 * math.prod(a) * b[-1] * event.count


def measure(name):
    """Profile the fused backend in one case.

    Args:
        name (str): A key of ``run.GOALS``.

    Returns:
        tuple[dict[str, float], float, float]: Seconds by kind; all seconds; floating point
        operations of the matrix products.
    """
    case = Case(name)
    for _ in range(3):
        case.run('fused')
    with torch.profiler.profile(record_shapes=True) as profile:
        case.run('fused')
    kind_of = {f'aten::{op}': kind for kind, ops in KINDS.items() for op in ops}
    seconds, flops = dict.fromkeys([*KINDS, 'everything else'], 0.0), 0
    for event in profile.key_averages(group_by_input_shape=True):
        kind = kind_of.get(event.key, 'everything else')
        seconds[kind] += event.self_cpu_time_total / 1e6
        if kind == 'matrix products':
            flops += flops_of(event)
    return seconds, sum(seconds.values()), flops


def main():
    """Profile the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('cases', nargs='+', choices=[n for n in GOALS if 'ing-' in n or 'inf' in n])
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    console = Console(width=100)
    ceiling = matmul_rate()
    for name in args.cases:
        seconds, total, flops = measure(name)
        table = Table('kernels', 'ms', 'share', title=name)
        for kind, spent in sorted(seconds.items(), key=lambda item: -item[1]):
            table.add_row(kind, f'{spent * 1e3:.0f}', f'{spent / total:.0%}')
        table.add_row('all', f'{total * 1e3:.0f}', '')
        console.print(table)
        rate = flops / seconds['matrix products']
        console.print(
            f'matrix products: {flops / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s; '
            f'a large one alone reaches {ceiling / 1e9:.0f}, at which they would take '
            f'{flops / ceiling * 1e3:.0f} ms'
        )


if __name__ == '__main__':
    main()
