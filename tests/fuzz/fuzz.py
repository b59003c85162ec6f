"""Fuzz everything that reads files of others, for long; the tests do the same for a minute.

``python tests/fuzz/fuzz.py --examples 10000`` prints inputs, outcomes and seconds of computing
and writes them to ``benchmarks/results/fuzz.csv``. Inputs that break the promise are counted, and
the first of each kind is kept as a file, to become a test. Exit status 1 if there is one.
"""

import argparse
import csv
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests'), str(ROOT / 'tests' / 'trust')]

import torch  # noqa: E402
from fuzz_targets import TARGETS, BrokenError, in_folder, peak_megabytes  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import coc_mm  # noqa: E402, F401  before mmdet

COLUMNS = ('target', 'inputs', 'works', 'refused', 'broken', 'seconds', 'slowest', 'peak MB')


def fuzz(target, examples, start, keep, step):
    """Run a target; return its row, refusals by kind, and what broke."""
    outcomes, broken, slowest = Counter(), {}, 0.0
    begin = time.process_time()

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(start)
    @given(target.inputs)
    def run(case):
        nonlocal slowest
        try:
            outcome, seconds = in_folder(target, case)
            slowest = max(slowest, seconds)
        except BrokenError as error:
            outcome = 'broken'
            what = f'{error}'[:160]
            if what not in broken and len(broken) < 20:
                broken[what] = case
                if keep:
                    name = f'{target.name.replace(": ", "-").replace(" ", "-")}-{len(broken)}'
                    content = case if isinstance(case, bytes) else repr(case).encode()
                    (keep / name).write_bytes(content)
        outcomes[outcome] += 1
        step()

    run()
    total = sum(outcomes.values())
    works = outcomes['works']
    row = dict(
        target=target.name,
        inputs=total,
        works=works,
        refused=total - works - outcomes['broken'],
        broken=outcomes['broken'],
        seconds=round(time.process_time() - begin, 1),
        slowest=round(slowest, 3),
    )
    return row | {'peak MB': round(peak_megabytes())}, broken


def commit():
    """The commit that is fuzzed, with a plus sign where files differ from it."""
    said = [
        subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        for words in (
            ('rev-parse', '--short', 'HEAD'),
            ('status', '--porcelain', 'coc_mm/checkpoints', 'coc_mm/datasets', 'tests/trust/fuzz*'),
        )
    ]
    return said[0] + ('+' if said[1] else '')


def write(path, rows):
    """Write the table as far as it is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--examples', type=int, default=10_000, help='inputs in all')
    parser.add_argument('--target', nargs='+', choices=list(TARGETS), help='default: all')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--keep', type=Path, help='folder for inputs that break the promise')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'fuzz.csv')
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [TARGETS[name] for name in args.target or TARGETS]
    whole = sum(target.share for target in chosen)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    more = dict(seed=args.seed, commit=commit(), torch=torch.__version__)
    console, rows, problems = Console(), [], {}
    with Progress(console=console) as progress:
        for target in chosen:
            count = max(1, -(-args.examples * target.share // whole).__int__())
            task = progress.add_task(target.name, total=count)
            row, broken = fuzz(
                target, count, args.seed, args.keep, lambda task=task: progress.advance(task)
            )
            rows.append(row)
            problems |= broken
            write(args.out, [row | more for row in rows])
    table = Table(*COLUMNS, title=f'Fuzzing, seed {args.seed}')
    for row in rows:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    sums = {name: sum(row[name] for row in rows) for name in COLUMNS[1:6]}
    table.add_section()
    table.add_row('in all', *(str(round(value, 1)) for value in sums.values()))
    console.print(table)
    for what in problems:
        console.print(what, markup=False, style='red')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
