"""Speed and memory of ``fused`` beside ``reference`` in the same network, on the CPU.

    python benchmarks/run.py                    # all cases, into benchmarks/results/cpu.csv
    python benchmarks/run.py inference-small    # cases whose name holds the words given;
                                                # the rows of the others stay as they are

Both run in turn in one process, and each case has a process of its own, as what earlier ones left
in the allocator changes what fresh memory costs. A case is measured after its parity test passed.
Use an otherwise idle machine and say how many threads: ``OMP_NUM_THREADS=2``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings

import torch
from common import conditions, interleave, peak_memory, summary, write_csv
from rich.console import Console
from rich.progress import track
from rich.table import Table

from coc_mm.models.backbones import ContextCluster
from coc_mm.models.layers import ContextClusterMixer

ARCHS = ('tiny', 'tiny_plain', 'small', 'medium')
GOALS = {
    **{f'inference-{a}': g for a, g in zip(ARCHS, (2.5, 4.5, 2.2, 2.4), strict=True)},
    **{f'training-{a}': g for a, g in zip(ARCHS, (2.0, 3.5, 1.9, 2.0), strict=True)},
    'compiled-small': 2.6,
    'bf16-small': 4.0,
    'dense-inference-small-c49': 6.0,
    'dense-training-small-c49': 5.0,
    'dense-memory-small-c49': 3.0,
    'poolformer-s12': 1.0,
}
# Errors of float32 in a network whose assignments may flip are compared as norms.
SLACK = 1e-6


class Case:
    """A network, its input, and how it is called.

    Args:
        name (str): A key of ``GOALS``.
    """

    def __init__(self, name):
        self.name = name
        self.dense = name.startswith('dense')
        arch = name.split('-')[-2 if self.dense else -1] if 'pool' not in name else 'small'
        self.training = 'training' in name or 'memory' in name
        options = dict(arch=arch, layer_scale_init_value=0.1)
        if self.dense:
            options.update(proposals=(7, 7), folds=(8, 4, 2, 1), out_indices=(0, 1, 2, 3))
        torch.manual_seed(0)
        self.model = ContextCluster(**options).train(self.training)
        self.shape = (1, 3, 512, 512) if self.dense else (8, 3, 224, 224)
        self.image = torch.randn(self.shape)

    def use(self, backend, model=None):
        """Choose the backend of all mixers."""
        for module in (self.model if model is None else model).modules():
            if isinstance(module, ContextClusterMixer):
                module.backend = backend

    def run(self, backend, model=None):
        """One inference or one training step without the optimizer; returns the outputs."""
        self.use(backend)
        model = self.model if model is None else model  # a compiled one has no truth value
        if self.training:
            out = model(self.image)
            sum(t.square().mean() for t in out).backward()
            self.model.zero_grad()
            return out
        with torch.inference_mode():
            return model(self.image)

    def check(self):
        """Hold ``fused`` in float32 against the reference in float64.

        Returns:
            float: Its error in units of the float32 reference's own.

        Raises:
            SystemExit: The error is more than twice that: nothing is timed.
        """
        image = self.image
        # A flipped assignment weighs more than rounding in a single image: the middle of three.
        generator = torch.Generator().manual_seed(1)
        size = (1, *self.shape[1:])
        ratios = [self._error_ratio(torch.randn(size, generator=generator)) for _ in range(3)]
        self.model.float()
        self.image = image
        middle = statistics.median(ratios)
        if middle > 2:
            sys.exit(f"{self.name}: the error is {middle:.1f} times the reference's, not timed")
        return middle

    def _error_ratio(self, image):
        """Error of ``fused`` over that of the reference in float32, outputs and gradients."""
        found = {}
        for name, backend, dtype in (
            ('exact', 'reference', torch.float64),
            ('plain', 'reference', torch.float32),
            ('ours', 'fused', torch.float32),
        ):
            self.model.to(dtype)
            self.use(backend)
            outs = self.model(image.to(dtype))
            found[name] = [out.detach() for out in outs]
            if self.training:
                self.model.zero_grad()
                sum(t.square().mean() for t in outs).backward()
                grads = [p.grad.flatten() for p in self.model.parameters()]
                found[name].append(torch.cat(grads))
                self.model.zero_grad(set_to_none=True)
        return max(
            _error(ours, exact) / (_error(plain, exact) + SLACK)
            for ours, plain, exact in zip(
                *(found[n] for n in ('ours', 'plain', 'exact')), strict=True
            )
        )


def _error(found, exact):
    exact = exact.double()
    return ((found.double() - exact).norm() / exact.norm()).item()


def matmul_rate():
    """Return the rate of a large float32 matrix product, in floating point operations/s."""
    a = torch.randn(2048, 2048)
    seconds = interleave(dict(product=lambda: a @ a), 7)['product']
    return 2 * 2048**3 / summary(seconds)[0]


def measure(name, rounds):
    """Measure one case.

    Args:
        name (str): A key of ``GOALS``.
        rounds (int): Times that each side runs.

    Returns:
        dict: A row of the table.
    """
    if name.startswith('dense-memory'):
        return _measure_memory(name)
    case = Case(name)
    note = ''
    if name == 'bf16-small':
        if not torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported():
            return _row(case, note='this processor has no bfloat16 instructions')
        calls = dict(reference=lambda: case.run('reference'), ours=lambda: _autocast(case))
        parity = _error(_autocast(case)[0], case.run('reference')[0])
        if parity > 0.05:
            sys.exit(f'{name}: bfloat16 is off by {parity:.2f}, not timed')
    elif name == 'poolformer-s12':
        parity, calls = case.check(), _beside_poolformer(case)
    elif name == 'compiled-small':
        parity = case.check()
        compiled, note = _compile(case)
        calls = dict(
            reference=lambda: case.run('reference'), ours=lambda: case.run('fused', compiled)
        )
    else:
        parity = case.check()
        calls = {
            'reference': lambda: case.run('reference'),
            'ours': lambda: case.run('fused'),
        }
    seconds = interleave(calls, rounds)
    return _row(case, seconds, parity, note)


def _autocast(case):
    with torch.autocast('cpu', torch.bfloat16):
        return case.run('fused')


def _beside_poolformer(case):
    from mmpretrain.models import PoolFormer

    other = PoolFormer(arch='s12')
    other.eval()  # returns nothing

    def pool():
        with torch.inference_mode():
            other(case.image)

    return dict(reference=pool, ours=lambda: case.run('fused'))


def _compile(case):
    compiled = torch.compile(case.model, fullgraph=True)
    start = time.perf_counter()
    case.run('fused', compiled)
    spent = time.perf_counter() - start
    with torch.inference_mode():
        exact = case.run('fused')[0]
        if _error(compiled(case.image)[0], exact) > 1e-4:
            sys.exit('compiled-small: compiled code gives something else, not timed')
    from torch.utils.flop_counter import FlopCounterMode

    # The arithmetic of the equations, whichever part of it is left out by algebra.
    case.use('reference')
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.model(case.image)
    return compiled, f'compiled in {spent:.0f} s; reference flops {counter.get_total_flops():.3e}'


def _measure_memory(name):
    case = Case(name)
    parity = case.check()
    peaks = {}
    for backend in ('reference', 'fused'):
        peaks[backend] = _in_a_process('--memory', name, backend)
    if peaks['fused'] is None:
        return _row(case, note='this system does not tell peak memory')
    row = _row(case, None, parity)
    row.update(
        reference_peak_mib=round(peaks['reference'], 1),
        peak_mib=round(peaks['fused'], 1),
        ratio=round(peaks['reference'] / peaks['fused'], 2),
    )
    return row


def _in_a_process(*arguments):
    command = [sys.executable, '-W', 'ignore', __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f'failed: {" ".join(command)}')
    return json.loads(done.stdout.splitlines()[-1])


def _row(case, seconds=None, parity=None, note=''):
    row = dict(
        case=case.name,
        **conditions(),
        dtype='bfloat16' if case.name.startswith('bf16') else 'float32',
        shape='x'.join(map(str, case.shape)),
        parity='' if parity is None else f'{parity:.2f}',
        reference_median_s='',
        reference_spread_s='',
        median_s='',
        spread_s='',
        images_per_s='',
        ratio='',
        goal=GOALS[case.name],
        reference_peak_mib='',
        peak_mib='',
        note=note,
    )
    if seconds:
        (theirs, theirs_spread), (ours, ours_spread) = (summary(s) for s in seconds.values())
        row.update(
            reference_median_s=f'{theirs:.4f}',
            reference_spread_s=f'{theirs_spread:.4f}',
            median_s=f'{ours:.4f}',
            spread_s=f'{ours_spread:.4f}',
            images_per_s=f'{case.shape[0] / ours:.1f}',
            ratio=f'{theirs / ours:.2f}',
        )
    return row


def main():
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('words', nargs='*', help='parts of names of cases; none means all')
    parser.add_argument('--rounds', type=int, default=7, help='times that each side runs')
    parser.add_argument('--memory', nargs=2, metavar=('CASE', 'BACKEND'), help=argparse.SUPPRESS)
    parser.add_argument('--alone', metavar='CASE', help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    if args.memory:
        case = Case(args.memory[0])
        print(json.dumps(peak_memory(lambda: case.run(args.memory[1]))))
        return
    if args.alone:
        print(json.dumps(measure(args.alone, args.rounds)))
        return
    names = [n for n in GOALS if not args.words or any(word in n for word in args.words)]
    if not names or args.rounds < 2:
        parser.error(f'no such case, or fewer than 2 rounds; cases: {", ".join(GOALS)}')
    console = Console(width=100)
    rate = matmul_rate()
    rows = []
    for name in track(names, 'measuring', console=Console(stderr=True)):
        rows.append(_in_a_process('--alone', name, '--rounds', str(args.rounds)))
        rows[-1]['matmul_gflops'] = round(rate / 1e9, 1)
        path = write_csv('cpu', rows, keep='case')  # what a later failure does not take along
    table = Table('case', 'reference s', 'ours s', 'ratio', 'goal', 'note')
    for row in rows:
        keys = ('reference_median_s', 'median_s', 'ratio', 'goal', 'note')
        table.add_row(row['case'], *(str(row[key]) for key in keys))
    console.print(table)
    console.print(f'float32 matrix products: {rate / 1e9:.0f} GFLOP/s')
    console.print(f'written: {path}')


if __name__ == '__main__':
    main()
