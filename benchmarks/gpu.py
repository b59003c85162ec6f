"""Tests, parity, speed and memory on a GPU, and a profile.

    python benchmarks/gpu.py --report gpu.txt   # all; figures into benchmarks/results/gpu.csv
    python benchmarks/gpu.py mixer inference    # jobs whose name holds one of the words
    python benchmarks/gpu.py --smoke            # every job but the tests, tiny, on the CPU

Each job has its own time limit, all together ``--seconds``; report and table grow as they go.
Operators take bfloat16, networks run under autocast ('bf16') or in float32. An operator is timed
after its parity test passed: with float64 as the truth, outputs and every gradient are off by at
most twice what PyTorch in the same precision is.
"""

import argparse
import contextlib
import importlib.util
import signal
import subprocess
import sys
import time
from functools import partial

import torch
from common import ROOT, conditions, interleave, summary, write_csv
from torch import nn

from coc_mm.models.backbones import ContextCluster
from coc_mm.models.layers import ContextClusterMixer
from coc_mm.ops import context_cluster_packed
from coc_mm.ops.backends import reference
from coc_mm.ops.regions import region_layout

DTYPE = torch.bfloat16
TIE = 2e-6  # points whose two best centers are closer than this may join either
SLACK = 2**-16  # the part of a sum of 16-bit products that float32 sums of them may lose
# name: shape, proposals, folds, goals of reference / triton: forward, forward and backward.
MIXERS = {
    'mixer-dense-c49': ((2, 200, 336, 2, 4, 32), (7, 7), (8, 8), 10, 8),
    'mixer-dense-c49-one-region': ((2, 128, 128, 2, 4, 32), (7, 7), (1, 1), 10, 8),
    'mixer-large-c49': ((8, 200, 336, 2, 4, 32), (7, 7), (8, 8), '', ''),
    'mixer-small': ((256, 56, 56, 2, 4, 32), (2, 2), (8, 8), '', ''),
}
# kind-network-precision-options: 'backends' compares them, 'one' image, CUDA 'graphs'.
NETWORKS = [
    *('inference-small-bf16', 'inference-small-float32', 'inference-small-bf16-one'),
    *('inference-tiny-bf16', 'inference-medium-bf16', 'training-small-bf16-backends'),
    *('training-small-float32', 'training-tiny-bf16', 'training-medium-bf16'),
    *('training-dense-bf16-backends', 'inference-poolformer_s12-bf16'),
    *('training-poolformer_s12-bf16', 'inference-small-bf16-compiled'),
    *('training-small-bf16-compiled', 'inference-small-bf16-one-graphs'),
]
GOALS = {'training-small-bf16-backends': 2, 'training-dense-bf16-backends': 3}
COLUMNS = ['case', 'backend', 'commit', 'device', 'driver', 'torch', 'triton', 'dtype', 'shape']
COLUMNS += ['parity', 'left_out', 'median_ms', 'spread_ms', 'images_per_s', 'first_s', 'peak_mib']
COLUMNS += ['copy_share', 'speed_of_reference', 'memory_of_reference', 'speed_of_matmul']
COLUMNS += ['memory_of_matmul', 'goal']


class TimeIsUp(BaseException):
    """A job took too long: no Exception, which the operator would answer with another backend."""


class Machine:
    """Where all runs, and how large."""

    def __init__(self, smoke, rounds):
        self.smoke, self.rounds = smoke, rounds
        self.device = 'cpu' if smoke else 'cuda'
        self.backends = ('reference', 'matmul') if smoke else ('reference', 'matmul', 'triton')
        self.ours = self.backends[-1]
        source = torch.empty(2**20 if smoke else 2**30, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copy = self.measure(dict(copy=lambda: target.copy_(source)))['copy'][1]
        self.bandwidth = 2 * source.numel() / copy  # bytes per second, read and written

    def finish(self, call, times=1):
        """Call, and wait for the device."""
        for _ in range(times):
            call()
        if self.device == 'cuda':
            torch.cuda.synchronize()

    def measure(self, calls, seconds=0.03):
        """Return for each call the seconds of its first run, median and spread of one, peak MiB."""
        firsts, timed, times, peaks = {}, {}, {}, {}
        for name, call in calls.items():
            start = time.perf_counter()
            self.finish(call)
            firsts[name] = time.perf_counter() - start
            self.finish(call, 2)
            before = peaks[name] = 0
            if self.device == 'cuda':
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            self.finish(call)
            times[name] = max(1, min(10, int(seconds / (time.perf_counter() - start))))
            if self.device == 'cuda':
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
            timed[name] = partial(self.finish, call, times[name])
        found = interleave(timed, self.rounds)
        return {
            name: (firsts[name], *(x / times[name] for x in summary(found[name])), peaks[name])
            for name in calls
        }


def tests(machine, report):
    """Run the tests of the kernels; their output goes into the report."""
    workers = ['-n', '8'] if importlib.util.find_spec('xdist') else []
    folder = ROOT / 'tests/ops/backends'
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *workers]
    command += map(str, sorted(folder.glob('test_triton*.py')))
    result = subprocess.run(command, cwd=ROOT, stdout=report.file, stderr=subprocess.STDOUT)
    if result.returncode:
        raise RuntimeError(f'pytest ended with status {result.returncode}')


def parity(machine, report, arch):
    """Hold float32 logits against the official code's in float64: twice reference's error."""
    sys.path.insert(0, str(ROOT / 'tests'))
    import golden

    from coc_mm.checkpoints import convert_official

    expected = golden.load(f'coc_{arch}_224x224')
    truth = torch.from_numpy(expected['logits'])
    weights = convert_official(golden.official_state_dict(f'coc_{arch}', int(expected['salt'])))
    image = golden.image(expected['input_shape'], expected['seed']).float().to(machine.device)
    errors = {}
    for backend in machine.backends:
        network = Network(arch, backend)
        network.load_state_dict(weights)
        with torch.inference_mode():
            logits = network.to(machine.device).eval()(image).double().cpu()
        errors[backend] = ((logits - truth).norm() / truth.norm()).item()
        if not torch.equal(logits.argmax(1), truth.argmax(1)):
            raise RuntimeError(f'{backend} predicts other classes')
    report(', '.join(f'{backend} off by {error:.1e}' for backend, error in errors.items()))
    if not errors[machine.ours] <= 2 * errors['reference'] + 1e-6:
        raise RuntimeError('too far from the official logits')


def mixer(machine, report, case, backward):
    """Check, then time the operator of every backend on both spaces as one projection has them."""
    shape, proposals, folds, *goals = MIXERS[case]
    if machine.smoke:
        shape, proposals, folds = (1, 9, 8, 2, 2, 8), (2, 2), (2, 2)
    setting = proposals, folds, 'similarity'
    for seed in range(8):  # until not every region holds points that may join two centers
        torch.manual_seed(seed)
        points = torch.randn(shape, device=machine.device).to(DTYPE).requires_grad_(backward)
        scalars = [torch.tensor([x], device=machine.device) for x in (1.7, -0.3)]
        scalars = [t.requires_grad_(backward) for t in scalars]
        grad = torch.randn(*shape[:3], *shape[4:], device=machine.device).to(DTYPE)
        mask, left_out = clear_regions(points[:1], *scalars, proposals, folds)
        if mask.any():
            break
    tensors = [points[:1], *scalars]
    error = mixer_error(machine, tensors, grad[:1] * mask, mask, setting)
    if not error <= 1:
        raise RuntimeError(f'{error:.2f} times the error allowed ({left_out}), not timed')

    def run(backend):
        out = context_cluster_packed(points, *scalars, *setting, backend=backend)
        if backward:
            torch.autograd.grad(out, [points, *scalars], grad)

    # Read the points, write the output; the points again, and the gradients of either.
    moved = (3 * points.numel() + 2 * grad.numel()) if backward else points.numel() + grad.numel()
    found = machine.measure({b: partial(run, b) for b in machine.backends})
    rows = compare(found, goals[backward])
    for row in rows:
        row.update(dtype='bfloat16', shape='x'.join(map(str, shape)), left_out=left_out)
        row['parity'] = f'{error:.2f}'
        share = moved * points.element_size() / (float(row['median_ms']) / 1e3) / machine.bandwidth
        row['copy_share'] = f'{share:.3f}'
    return rows


def clear_regions(points, alpha, beta, proposals, folds):
    """Return a mask (1, H, W, E, 1) of regions without points near two centers, and a note."""
    x = points.detach().double().unbind(-3)[0]
    layout = region_layout(x, proposals, folds)
    s = reference.similarity(layout.split(x), alpha.double(), beta.double(), layout)
    best = s.detach().topk(2, -2).values
    tied = best[..., 0, :] - best[..., 1, :] < TIE  # (1, R, E, N)
    clear = ~tied.any(-1, keepdim=True)
    note = (
        f'{int(tied.sum())} points tie, {int((~clear).sum())} of {clear.numel()} regions left out'
    )
    return layout.merge(clear.expand_as(tied).unsqueeze(-1)), note


def mixer_error(machine, tensors, grad, mask, setting):
    """Return the worst error of output and gradients as a part of what is allowed."""

    def results(backend, dtype=None):
        leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
        out = context_cluster_packed(*leaves, *setting, backend=backend)
        return [out.detach() * mask, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    exact = results('reference', torch.float64)
    terms = (exact[0] * grad).abs().sum().item()
    slack = [SLACK / 32 * t.abs().max().item() for t in exact[:2]] + [SLACK * terms] * 2
    worst = 0.0
    for ours, same, truth, more in zip(
        results(machine.ours), results('matmul'), exact, slack, strict=True
    ):
        error, allowed = ((t.double() - truth).abs().max().item() for t in (ours, same))
        worst = max(worst, error / (2 * allowed + more)) if allowed + more else float('nan')
    return worst


class Network(nn.Module):
    """A classifier of ours; 'dense' is a backbone for dense prediction with 49 centers."""

    def __init__(self, arch, backend=None):
        super().__init__()
        options = dict(arch=arch, backend=backend)
        if arch == 'dense':
            options.update(arch='small', proposals=7, out_indices=(0, 1, 2, 3))
        self.backbone = ContextCluster(**options)
        self.head = nn.ModuleDict(dict(fc=nn.Linear(self.backbone.arch['dims'][-1], 1000)))

    def forward(self, x):
        """Return (B, 1000)."""
        maps = self.backbone(x)
        out = self.head['fc'](maps[-1].mean((2, 3)))
        return out + sum(x.mean() for x in maps[:-1])


def step(machine, name):
    """Return a function of the backend, inference or a training step with AdamW, and its shape."""
    kind, arch, precision, *options = name.split('-')
    training, graphs = kind == 'training', 'graphs' in options
    batch = 1 if 'one' in options else 64 if arch == 'medium' and training else 128
    shape = (2, 3, 800, 1344) if arch == 'dense' else (batch, 3, 224, 224)
    shape = (1, 3, 64, 64) if machine.smoke else shape
    torch.manual_seed(0)
    if arch.startswith('poolformer'):
        import timm

        model = timm.create_model(arch)
    else:
        model = Network('tiny' if machine.smoke and arch != 'dense' else arch)
    model = model.to(machine.device).train(training)
    image = torch.randn(shape, device=machine.device)
    target = torch.randint(1000, shape[:1], device=machine.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=not machine.smoke)
    forward = model
    if graphs or 'compiled' in options:
        how = dict(mode='reduce-overhead' if graphs else None, fullgraph=True)
        forward = torch.compile(model, **(dict(backend='eager') if machine.smoke else how))

    def run(backend):
        for module in model.modules():
            if isinstance(module, ContextClusterMixer):
                module.backend = backend
        mixed = torch.autocast(machine.device, DTYPE, enabled=precision == 'bf16')
        with torch.set_grad_enabled(training), mixed:
            out = forward(image)
        if training:
            nn.functional.cross_entropy(out.float(), target).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run, shape


def network(machine, report, name):
    """Time inference or training."""
    run, shape = step(machine, name)
    backends = machine.backends if name.endswith('backends') else [machine.ours]
    rows = compare(machine.measure({b: partial(run, b) for b in backends}), GOALS.get(name, ''))
    for row in rows:
        row.update(dtype=name.split('-')[2], shape='x'.join(map(str, shape)))
        row['images_per_s'] = f'{shape[0] / float(row["median_ms"]) * 1e3:.1f}'
    return rows


def profile(machine, report, kind):
    """Write where the device's time goes in three steps of small."""
    run, _ = step(machine, f'{kind}-small-bf16')
    machine.finish(partial(run, machine.ours), 3)
    with torch.profiler.profile() as recorded:
        machine.finish(partial(run, machine.ours), 3)
    table = recorded.key_averages().table
    report(table(f'self_{machine.device}_time_total', row_limit=28, max_name_column_width=60))


def compare(found, goal):
    """Return a row for each backend, beside reference and matmul where these were measured."""
    rows = []
    for backend, (first, median, spread, peak) in found.items():
        row = dict(backend=backend, median_ms=f'{median * 1e3:.4f}', first_s=f'{first:.1f}')
        row.update(spread_ms=f'{spread * 1e3:.4f}', peak_mib=f'{peak:.1f}')
        for other in set(found) & {'reference', 'matmul'}:
            row[f'speed_of_{other}'] = f'{found[other][1] / median:.2f}'
            row[f'memory_of_{other}'] = f'{peak / found[other][3]:.3f}' if found[other][3] else ''
        row['goal'] = goal if backend == 'triton' else ''
        rows.append(row)
    return rows


class Report:
    """What is printed goes to a file too, at once."""

    def __init__(self, path):
        self.file = open(path, 'w', buffering=1) if path else sys.stdout  # noqa: SIM115

    def __call__(self, text):
        """Write a line."""
        print(text, flush=True)
        if self.file is not sys.stdout:
            self.file.write(f'{text}\n')


@contextlib.contextmanager
def time_limit(seconds):
    """Raise :class:`TimeIsUp` after so many seconds."""

    def stop(*_):
        raise TimeIsUp(f'stopped after {seconds:.0f} s')

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def all_jobs():
    """Return name, seconds and function of each."""
    jobs = [('tests', 90, tests)]
    jobs += [(f'parity-{arch}', 20, partial(parity, arch=arch)) for arch in ('small', 'medium')]
    for case in MIXERS:
        for backward, word in enumerate(('forward', 'both')):
            jobs.append((f'{case}-{word}', 25, partial(mixer, case=case, backward=bool(backward))))
    jobs += [(f'profile-{k}', 20, partial(profile, kind=k)) for k in ('inference', 'training')]
    jobs += [(name, 60, partial(network, name=name)) for name in NETWORKS]
    return jobs


def environment(machine, commit):
    """Return what every row tells of the machine."""
    import triton

    known = conditions(machine.device)
    driver = ''
    if not machine.smoke:
        command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        driver = subprocess.run(command, capture_output=True, text=True).stdout.split('\n')[0]
    return dict(
        commit=commit or known['commit'],
        device=known['device'],
        driver=driver,
        torch=known['torch'],
        triton=triton.__version__,
    )


def main():
    """Run the jobs asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('words', nargs='*', help='parts of the names of jobs; all by default')
    parser.add_argument('--report', help='file for all that is printed, and what the tests say')
    parser.add_argument('--seconds', type=float, default=240, help='for all jobs together')
    parser.add_argument('--rounds', type=int, default=7, help='timed calls of each backend')
    parser.add_argument('--name', default='gpu', help='the table, below benchmarks/results')
    parser.add_argument('--commit', help='where there is no git to tell it')
    parser.add_argument('--smoke', action='store_true', help='tiny sizes on the CPU, no table')
    args = parser.parse_args()
    jobs = [j for j in all_jobs() if not args.words or any(word in j[0] for word in args.words)]
    if not jobs:
        parser.error(f'no job is called so: choose from {", ".join(j[0] for j in all_jobs())}')
    if args.rounds < 2:
        parser.error('--rounds must be 2 at least, for a median and a spread')
    if not args.smoke and not torch.cuda.is_available():
        sys.exit(
            'benchmarks/gpu.py needs a CUDA device, and PyTorch finds none; on the CPU run '
            'benchmarks/run.py'
        )
    deadline = time.monotonic() + args.seconds
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    machine, report = Machine(args.smoke, args.rounds), Report(args.report)
    known = environment(machine, args.commit)
    report(', '.join(f'{key} {value}' for key, value in known.items()))
    report(f'copy: {machine.bandwidth / 1e9:.0f} GB/s')
    rows, failed = [], []
    for name, seconds, job in jobs:
        start, found = time.monotonic(), []
        needs_timm = 'poolformer' in name and not importlib.util.find_spec('timm')
        if needs_timm or deadline - start < 4 or (args.smoke and name == 'tests'):
            report(f'-- {name}: left out')
            continue
        try:
            with time_limit(min(seconds, deadline - start)):
                found = job(machine, report) or []
        except (Exception, TimeIsUp) as error:
            failed.append(name)
            report(f'{name}: FAILED, {type(error).__name__}: {str(error)[:600]}')
        for row in found:
            row = dict.fromkeys(COLUMNS, '') | known | dict(case=name) | row
            rows.append(row)
            report(', '.join(f'{k} {v}' for k, v in row.items() if v and k not in known))
        if found and not args.smoke:
            write_csv(args.name, rows)
        torch.cuda.empty_cache()
        torch.compiler.reset()
        report(f'-- {name}: {time.monotonic() - start:.1f} s')
    sys.exit(f'failed: {", ".join(failed)}' if failed else 0)


if __name__ == '__main__':
    main()
