"""Speed and memory of ``triton`` beside ``reference`` and ``fused``, on a GPU.

    python benchmarks/gpu.py                # all cases, into benchmarks/results/gpu.csv
    python benchmarks/gpu.py mixer-dense    # cases whose name holds one of the words given

The backends run in turn in one process. Operators take 16-bit points, networks run under automatic
mixed precision. A case is measured after its parity test passed: with float64 as the truth, outputs
and every gradient are off by at most twice what PyTorch in the same precision is.
"""

import argparse
import sys

import torch
from common import conditions, interleave, summary, write_csv
from rich.console import Console
from rich.table import Table

from coc_mm.models.backbones import ContextCluster
from coc_mm.models.layers import ContextClusterMixer
from coc_mm.ops import context_cluster_packed
from coc_mm.ops.backends import reference
from coc_mm.ops.regions import RegionLayout, region_layout

BACKENDS = ('reference', 'fused', 'triton')
DTYPE = torch.bfloat16
# Points whose two best centers are closer than this may join either.
TIE = 1e-5
# The part of a sum of 16-bit products that float32 sums of them may lose.
SLACK = 2**-16
# name: what runs, shape, proposals, folds, goal of reference / triton.
CASES = {
    'mixer-dense-c49-forward': ('forward', (2, 200, 336, 2, 4, 32), (7, 7), (8, 8), 10),
    'mixer-dense-c49-both': ('both', (2, 200, 336, 2, 4, 32), (7, 7), (8, 8), 8),
    'mixer-dense-c49-one-region-forward': ('forward', (2, 128, 128, 2, 4, 32), (7, 7), (1, 1), 10),
    'mixer-dense-c49-one-region-both': ('both', (2, 128, 128, 2, 4, 32), (7, 7), (1, 1), 8),
    'mixer-large-c49-forward': ('forward', (8, 200, 336, 2, 4, 32), (7, 7), (8, 8), None),
    'mixer-large-c49-both': ('both', (8, 200, 336, 2, 4, 32), (7, 7), (8, 8), None),
    'mixer-small-forward': ('forward', (256, 56, 56, 2, 4, 32), (2, 2), (8, 8), None),
    'mixer-small-both': ('both', (256, 56, 56, 2, 4, 32), (2, 2), (8, 8), None),
    'training-small': ('training', (256, 3, 224, 224), None, None, 2),
    'training-dense-small-c49': ('training', (2, 3, 800, 1344), (7, 7), (8, 4, 2, 1), 3),
}


class Operator:
    """The operator on both spaces as one projection leaves them.

    Args:
        shape (tuple[int]): (B, H, W, 2, E, D).
        setting (tuple): proposals, folds.
        backward (bool): Whether gradients are computed.
        device (str): Defaults to 'cuda'.
        dtype (torch.dtype): Of the points. Defaults to bfloat16.
    """

    def __init__(self, shape, setting, backward, device='cuda', dtype=DTYPE):
        torch.manual_seed(0)
        self.setting, self.backward = setting, backward
        self.points = torch.randn(shape, device=device).to(dtype).requires_grad_(backward)
        self.scalars = [torch.tensor([x], device=device) for x in (1.7, -0.3)]
        self.scalars = [t.requires_grad_(backward) for t in self.scalars]
        self.grad = torch.randn(*shape[:3], *shape[4:], device=device).to(dtype)
        moved = self.points.numel() + self.grad.numel()  # read the points, write the output
        if backward:  # the points again, and the gradients of either
            moved += 2 * self.points.numel() + self.grad.numel()
        self.bytes = moved * self.points.element_size()

    def run(self, backend):
        """Call the operator, with its backward pass if wanted."""
        out = context_cluster_packed(self.points, *self.scalars, *self.setting, backend=backend)
        if self.backward:
            torch.autograd.grad(out, [self.points, *self.scalars], self.grad)

    def check(self):
        """Hold the first image against float64, less the regions with a point between centers.

        Returns:
            tuple[float, str]: The worst error as a part of what is allowed; what was left out.
        """
        tensors = [self.points[:1], *self.scalars]
        tied = _tied(tensors, *self.setting)
        clear = ~tied.any(-1)
        mask = _spread(clear, self.points.shape, tied.shape[-1], *self.setting)
        grad = self.grad[:1] * mask

        def results(backend, dtype=None):
            leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
            out = context_cluster_packed(*leaves, *self.setting, backend=backend)
            return [out.detach() * mask, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

        exact = results('reference', torch.float64)
        terms = (exact[0] * grad).abs().sum().item()
        slack = [SLACK / 32 * exact[0].abs().max().item(), SLACK / 32 * exact[1].abs().max().item()]
        slack += [SLACK * terms] * 2
        worst = 0.0
        for ours, same, truth, more in zip(
            results('triton'), results('fused'), exact, slack, strict=True
        ):
            error, allowed = ((t.double() - truth).abs().max().item() for t in (ours, same))
            worst = max(worst, error / (2 * allowed + more))
        left_out = f'{int(tied.sum())} points tie, {int((~clear).sum())} of {clear.numel()} regions'
        return worst, f'{left_out} left out'


def _tied(tensors, proposals, folds):
    """Say which points have two best centers within rounding, (1, regions, E, N)."""
    x, alpha, beta = (t.detach().double() for t in tensors)
    x = x.unbind(-3)[0]
    layout = region_layout(x, proposals, folds)
    x = layout.split(x)
    tied = []
    for region in range(x.shape[1]):  # one at a time: 64-bit similarities are large
        s = reference.similarity(x[:, [region]], alpha, beta, _one(layout, region))
        if s.shape[-2] == 1:
            return torch.zeros(*x.shape[:-1], dtype=torch.bool, device=x.device)
        best = s.topk(2, -2).values
        tied.append(best[..., 0, :] - best[..., 1, :] < TIE)
    return torch.cat(tied, 1)


def _one(layout, region):
    """Return the layout of one region alone."""

    def pick(axis, k):
        parts = (axis.valid, axis.pool, axis.center_mask)
        valid, pool, mask = (None if t is None else t[k : k + 1] for t in parts)
        return axis._replace(folds=1, valid=valid, pool=pool, center_mask=mask)

    i, j = divmod(region, layout.cols.folds)
    return RegionLayout(pick(layout.rows, i), pick(layout.cols, j))


def _spread(clear, shape, count, proposals, folds):
    """Lay (1, regions, E) out as a map (1, H, W, E, 1)."""
    like = torch.empty(shape[:3], dtype=torch.float64, device=clear.device)
    mask = clear[..., None, None].expand(*clear.shape, count, 1)
    return region_layout(like, proposals, folds).merge(mask)


class Training:
    """A training step of a network without the optimizer.

    Args:
        shape (tuple[int]): (B, 3, H, W).
        proposals (tuple[int, int] | None): Centers per region, in every stage.
        folds (tuple[int] | None): Regions of each stage.
        device (str): Defaults to 'cuda'.
        arch (str): Defaults to 'small'.
    """

    def __init__(self, shape, proposals, folds, device='cuda', arch='small'):
        torch.manual_seed(0)
        options = dict(arch=arch, layer_scale_init_value=0.1)
        if proposals:
            options.update(proposals=proposals, folds=folds, out_indices=(0, 1, 2, 3))
        self.model = ContextCluster(**options).to(device).train()
        self.image = torch.randn(shape, device=device)

    def run(self, backend, image=None, enabled=True):
        """Forward and backward; returns the gradients of the parameters."""
        for module in self.model.modules():
            if isinstance(module, ContextClusterMixer):
                module.backend = backend
        image = self.image if image is None else image
        with torch.autocast(image.device.type, DTYPE, enabled=enabled):
            out = self.model(image)
        sum(t.float().square().mean() for t in out).backward()
        grads = [p.grad for p in self.model.parameters()]
        self.model.zero_grad()
        return grads

    def check(self):
        """Hold all gradients for two images, as one vector, against float32.

        Returns:
            tuple[float, str]: The error as a part of what is allowed, and how it was found.
        """
        image = self.image[:2, :, :448, :448]

        def vector(*args):
            return torch.cat([g.double().flatten() for g in self.run(*args)])

        # Autocast rounds what stands around the operator, and points change clusters.
        exact = vector('reference', image, False)
        ours, same = ((vector(name, image) - exact).norm() for name in ('triton', 'fused'))
        return (ours / (2 * same + 1e-6 * exact.norm())).item(), 'norms, points that tie included'


def _bandwidth(rounds):
    """Return how many bytes per second a copy reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    seconds = interleave(dict(copy=lambda: _finish(lambda: target.copy_(source), 10)), rounds)
    return 2 * source.numel() * 10 / summary(seconds['copy'])[0]


def _finish(call, times):
    for _ in range(times):
        call()
    torch.cuda.synchronize()


def _peak(call):
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(name, rounds, bandwidth):
    """Check a case, then time its backends.

    Args:
        name (str): A key of ``CASES``.
        rounds (int): Timed calls of each backend.
        bandwidth (float): Of a copy, bytes per second.

    Returns:
        list[dict]: A row for each backend that had memory enough.
    """
    kind, shape, proposals, folds, goal = CASES[name]
    operator = kind != 'training'
    if operator:
        case = Operator(shape, (proposals, folds), kind == 'both')
    else:
        case = Training(shape, proposals, folds)
    error, how = case.check()
    if not error <= 1:
        sys.exit(f'{name}: {error:.2f} times the error allowed ({how}), not timed')
    times = 10 if operator else 1
    calls, peaks = {}, {}
    for backend in BACKENDS:
        try:
            case.run(backend)
            peaks[backend] = _peak(lambda b=backend: case.run(b))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        calls[backend] = lambda b=backend: _finish(lambda: case.run(b), times)
    seconds = interleave(calls, rounds)
    medians = {b: [x / times for x in summary(s)] for b, s in seconds.items()}
    rows = []
    for backend, (median, spread) in medians.items():
        row = dict(case=name, backend=backend, **conditions('cuda'), dtype='bfloat16')
        row.update(
            shape='x'.join(map(str, shape)),
            parity=f'{error:.2f}',
            left_out=how,
            median_ms=f'{median * 1e3:.4f}',
            spread_ms=f'{spread * 1e3:.4f}',
            peak_mib=f'{peaks[backend]:.1f}',
            copy_share=f'{case.bytes / median / bandwidth:.3f}' if operator else '',
        )
        for other in BACKENDS[:2]:
            known = other in medians
            row[f'speed_of_{other}'] = f'{medians[other][0] / median:.2f}' if known else ''
            row[f'memory_of_{other}'] = f'{peaks[backend] / peaks[other]:.3f}' if known else ''
        row['goal'] = goal if goal and backend == 'triton' else ''
        rows.append(row)
    return rows


def main():
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('words', nargs='*', help='parts of the names of cases; all by default')
    parser.add_argument('--rounds', type=int, default=11, help='timed calls of each backend')
    parser.add_argument('--name', default='gpu', help='the table, below benchmarks/results')
    args = parser.parse_args()
    names = [n for n in CASES if not args.words or any(word in n for word in args.words)]
    if not names:
        parser.error(f'no case is called so: choose from {", ".join(CASES)}')
    if args.rounds < 2:
        parser.error('--rounds must be 2 at least, for a median and a spread')
    if not torch.cuda.is_available():
        sys.exit(
            'benchmarks/gpu.py needs a CUDA device, and PyTorch finds none; on the CPU run '
            'benchmarks/run.py'
        )
    bandwidth = _bandwidth(args.rounds)
    console = Console()
    console.print(f'copy: {bandwidth / 1e9:.0f} GB/s')
    rows = []
    for name in names:
        rows += measure(name, args.rounds, bandwidth)
        torch.cuda.empty_cache()
        last = rows[-1]
        console.print(f'{name}: {last["speed_of_reference"] or "-"} x reference')
    columns = ('case', 'backend', 'median_ms', 'speed_of_reference', 'speed_of_fused')
    columns += ('memory_of_reference', 'copy_share', 'goal')
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row[c]) for c in columns))
    console.print(table)
    console.print(f'written to {write_csv(args.name, rows)}')


if __name__ == '__main__':
    main()
