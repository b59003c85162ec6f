"""What the benchmark scripts share: conditions, interleaved timing, peak memory, CSV."""

import csv
import gc
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / 'results'
sys.path.insert(0, str(ROOT))

from coc_mm.utils.atomic_io import atomic_write  # noqa: E402


def conditions(device='cpu'):
    """Describe what a figure was measured on.

    Args:
        device (str): 'cpu' or 'cuda'. Defaults to 'cpu'.

    Returns:
        dict: commit, torch, device, threads.
    """
    run = subprocess.run(
        ['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True
    )
    return dict(
        commit=run.stdout.strip(),
        torch=torch.__version__,
        device=torch.cuda.get_device_name() if device == 'cuda' else _processor(),
        threads=torch.get_num_threads(),
    )


def _processor():
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def interleave(calls, rounds):
    """Time several functions in turn, so that a slow minute meets all of them.

    Args:
        calls (dict[str, callable]): By name, without arguments.
        rounds (int): Times each is called and counted, after one that is not.

    Returns:
        dict[str, list[float]]: Seconds.
    """
    seconds = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds):
    """Return the median and the spread between quartiles, in seconds.

    Args:
        seconds (list[float]): At least two.

    Returns:
        tuple[float, float]: Median; third less first quartile.
    """
    low, middle, high = statistics.quantiles(seconds, n=4, method='inclusive')
    return middle, high - low


def peak_memory(call):
    """Return the peak of a call's memory above what the process held before, in MiB.

    Linux alone tells, and counts what the process ever had since it was asked to forget.

    Args:
        call (callable): Without arguments; it is called twice, the second time counts.

    Returns:
        float | None: None where the system does not tell.
    """
    if not Path('/proc/self/clear_refs').exists():
        return None
    call()
    gc.collect()
    if platform.libc_ver()[0] == 'glibc':
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    before = _status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')
    call()
    return (_status('VmHWM') - before) / 1024


def _status(key):
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def write_csv(name, rows, keep=None):
    """Write rows of one table; a file of this name is replaced when all are there.

    Args:
        name (str): Such as 'cpu'.
        rows (list[dict]): With the same keys.
        keep (str, optional): A key; rows of the file with other values of it stay. Defaults to
            None: no row stays.

    Returns:
        Path: The file, below ``benchmarks/results``.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f'{name}.csv'
    if keep and path.exists():
        with open(path, newline='') as file:
            table = {row[keep]: row for row in csv.DictReader(file)}
        table.update({row[keep]: row for row in rows})
        rows = list(table.values())
    with atomic_write(path) as fresh, open(fresh, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    return path
