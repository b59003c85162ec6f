#!/usr/bin/env python
"""Ask the demo many things at once, a third of them bad, and watch it.

``python projects/gradio_demo/load_test.py --csv`` starts the demo on a free port of this machine
and writes ``benchmarks/results/demo_load.csv``. The status is 1 if a good request got a
wrong answer, a bad one no clear message, memory stayed more than 10 % above its level, files
were left, or anything outside of the demo's folder could be read.
"""

import argparse
import asyncio
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from load_bad import Bait, bad_requests
from load_client import Page, Report, Visitor, good_images
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).resolve().parent

__all__ = ['Load', 'Outcome', 'Server', 'run_load']

_MIB = 1024  # in kB, of which /proc speaks


class Server:
    """The demo in a process of its own, all of its temporary files in a known place.

    Args:
        place (Path): An empty folder.
        arguments (Sequence[str]): Of ``app.py``, without ``--port``.
        threads (int | None): Of PyTorch. Defaults to None, as many as it likes.
        start_within (float): Seconds. Defaults to 300.
    """

    def __init__(
        self,
        place: Path,
        arguments: Sequence[str] = (),
        threads: int | None = None,
        start_within: float = 300,
    ):
        self.place, self.temporary = place, place / 'tmp'
        self.temporary.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        environment = dict(os.environ, TMPDIR=str(self.temporary), MPLBACKEND='Agg')
        if threads is not None:
            environment['OMP_NUM_THREADS'] = str(threads)
        command = [sys.executable, HERE / 'app.py', '--port', port, *arguments]
        self.log = place / 'log'
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=place, env=environment, stdout=log, stderr=log
            )
        self.url = self._address(start_within)
        (self.folder,) = self.temporary.glob('coc_mm_demo_*')

    def _address(self, seconds: float) -> str:
        for _ in range(round(seconds / 0.2)):
            if self.process.poll() is not None:
                break
            found = re.search(r'Open (http://127\.0\.0\.1:\d+/)', self.log.read_text())
            if found:
                return found[1]
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f'the demo did not start:\n{self.log.read_text()}')

    def memory(self) -> float:
        """Resident memory in MiB."""
        text = Path(f'/proc/{self.process.pid}/status').read_text()
        return int(re.search(r'VmRSS:\s+(\d+)', text)[1]) / _MIB

    def files(self) -> list[Path]:
        """Temporary files, without the examples and links."""
        found = (x for x in self.temporary.rglob('*') if x.is_file() and not x.is_symlink())
        return [x for x in found if x.parent.name != 'examples']

    def stop(self) -> None:
        """End it as a user would."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Outcome:
    """One wave of requests and what it left.

    Attributes:
        reports (list[Report]): Of all requests.
        seconds (float): From the first request to the last answer.
        before (float): Memory of the server after warming up, in MiB.
        after (float): The same when all visitors have left.
        files (int): Temporary files that were left.
    """

    reports: list[Report] = field(default_factory=list)
    seconds: float = 0
    before: float = 0
    after: float = 0
    files: int = 0

    def of(self, good: bool) -> list[Report]:
        """Return the good requests, or the bad ones."""
        return [x for x in self.reports if (x.kind == 'good') == good]

    @property
    def problems(self) -> list[str]:
        """All that should not have happened."""
        found = [f'{x.kind}: {x.problem}' for x in self.reports if x.problem]
        if self.after > 1.1 * self.before:
            found.append(f'memory went from {self.before:.0f} to {self.after:.0f} MiB')
        if self.files:
            found.append(f'{self.files} temporary files are left')
        return found

    def row(self) -> dict:
        """Summarize for a table."""
        row = dict(requests=len(self.reports), seconds=f'{self.seconds:.1f}')
        for name, good in (('good', True), ('bad', False)):
            part = self.of(good)
            row[name] = len(part)
            row[f'{name}_as_expected'] = sum(not x.problem for x in part)
            times = [x.seconds for x in part] or [0]
            for percent in (50, 90, 99):
                row[f'{name}_p{percent}_s'] = f'{np.percentile(times, percent):.2f}'
        row['asked_to_come_again'] = sum(x.waits for x in self.reports)
        row.update(before_mib=f'{self.before:.0f}', after_mib=f'{self.after:.0f}')
        return row | dict(files_left=self.files)


async def _patiently(sent: Coroutine, seconds: float) -> str:
    """Wait for a request, not counting the time that this process was suspended."""
    task = asyncio.ensure_future(sent)
    for _ in range(round(seconds)):
        if (await asyncio.wait({task}, timeout=1))[0]:
            return task.result()
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    return f'no answer within {seconds:g} s'


@contextmanager
def _trap():
    """A server on this machine that counts its callers."""
    callers = []
    with socket.create_server(('127.0.0.1', 0)) as listener:

        def count() -> None:
            while True:
                try:
                    connection, who = listener.accept()
                except OSError:
                    return
                callers.append(who)
                connection.close()

        threading.Thread(target=count, daemon=True).start()
        yield f'http://127.0.0.1:{listener.getsockname()[1]}/x.png', callers


class Load:
    """Sends waves of requests to a server.

    Args:
        server (Server): Already running.
        model (str, optional): Label to ask; the first of the page if None.
        megabytes (float): Size of a file that it takes.
        settle (float): Seconds that the server gets to tidy up after a wave.
        calm (float): Seconds until its memory counts as its level, after the first wave.
            Defaults to 25.
        patience (float): Seconds that a visitor waits for an answer. Defaults to 300.
        share_bad (float): Part of the requests that are bad. Defaults to 1/3.
        seed (int): Of the order of requests. Defaults to 0.
    """

    def __init__(
        self, server, model, megabytes, settle, calm=25, patience=300, share_bad=1 / 3, seed=0
    ):
        self.server, self.model = server, model
        self.megabytes, self.patience = megabytes, patience
        self.settle, self.calm = settle, calm
        self.share_bad = share_bad
        self.random = random.Random(seed)
        self.images = good_images()
        self.cases = bad_requests(megabytes)
        self.expected: dict[bytes, str] = {}
        self.level = 0.0

    def client(self) -> httpx.AsyncClient:
        """A client without limits of its own."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        timeout = httpx.Timeout(None, connect=60)
        return httpx.AsyncClient(
            base_url=self.server.url, limits=limits, timeout=timeout, trust_env=False
        )

    async def warm_up(self, visits: int) -> None:
        """Learn the right answers one by one, then let some visitors come at once."""
        async with self.client() as client:
            page = Page(self.server.url, (await client.get('/config')).json(), self.model)
            self.page = page
            for image in self.images:
                async with Visitor(page, client, self.patience) as visitor:
                    self.expected[image] = await visitor.look(image)
        if len(set(self.expected.values())) != len(self.images):
            raise RuntimeError('different images got the same answer')
        first = await self.wave(visits)
        problems = [problem for problem in first.problems if not problem.startswith('memory')]
        if problems:
            raise RuntimeError('warming up failed:\n' + '\n'.join(problems))
        self.level = first.after

    async def wave(self, count: int, tick=lambda: None) -> Outcome:
        """Send requests all at once and wait until the server is quiet again.

        Args:
            count (int): Number of requests.
            tick (Callable): Called after each.

        Returns:
            Outcome: What became of them.
        """
        bad = list(self.cases)
        self.random.shuffle(bad)
        number = round(count * self.share_bad)
        kinds = [bad[i % len(bad)] for i in range(number)] + ['good'] * (count - number)
        self.random.shuffle(kinds)
        outcome = Outcome(before=self.level or self.server.memory())
        secret = self.server.place / 'secret.txt'
        secret.write_text('this must stay here')
        link = self.server.folder / 'link.png'
        link.symlink_to(secret)
        with _trap() as (address, callers):
            bait = Bait(secret, link, secret.read_text(), address, self.megabytes)
            async with self.client() as client:
                started = time.monotonic()

                async def send(kind: str) -> Report:
                    report = await self._one(kind, client, bait)
                    tick()
                    return report

                outcome.reports = await asyncio.gather(*map(send, kinds))
                outcome.seconds = time.monotonic() - started
            link.unlink(missing_ok=True)
            await self._quiet(outcome)
            if callers:
                outcome.reports.append(Report('an address', f'fetched {len(callers)} times'))
        return outcome

    async def _one(self, kind: str, client: httpx.AsyncClient, bait: Bait) -> Report:
        report, started = Report(kind), time.monotonic()
        async with Visitor(self.page, client, self.patience) as visitor:
            try:
                sent = self._send(kind, visitor, bait)
                report.problem = await _patiently(sent, self.patience)
            except Exception as error:
                report.problem = f'{type(error).__name__}: {error}'
            report.seconds, report.waits = time.monotonic() - started, visitor.waits
        return report

    async def _send(self, kind: str, visitor: Visitor, bait: Bait) -> str:
        if kind != 'good':
            return await self.cases[kind](visitor, bait)
        image = self.random.choice(self.images)
        found = await visitor.look(image)
        return '' if found == self.expected[image] else 'another answer than alone'

    async def _quiet(self, outcome: Outcome) -> None:
        """Wait until files are gone and memory is back, or the server had its time for it."""
        for second in range(round(self.settle)):
            await asyncio.sleep(1)
            outcome.files, outcome.after = len(self.server.files()), self.server.memory()
            fine = outcome.after <= 1.1 * self.level if self.level else second >= self.calm
            if fine and not outcome.files:
                return


def run_load(load: Load, count: int, waves: int = 1, console: Console | None = None):
    """Warm the server up, then send waves.

    Args:
        load (Load): To which server, and what.
        count (int): Requests of a wave.
        waves (int): Defaults to 1.
        console (Console, optional): Where progress is shown; nowhere if None.

    Returns:
        list[Outcome]: One for each wave; the last ends with a good request, alone.
    """
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
    shown = Progress(*columns, TimeElapsedColumn(), console=console, disable=console is None)

    async def run() -> list[Outcome]:
        outcomes = []
        with shown:
            task = shown.add_task('warming up', total=None)
            await load.warm_up(max(8, count // 8))
            shown.remove_task(task)
            for number in range(waves):
                task = shown.add_task(f'wave {number + 1}', total=count)
                wave = await load.wave(count, lambda task=task: shown.advance(task))
                outcomes.append(wave)
        async with load.client() as client:
            last = await load._one('good', client, None)
        if load.server.process.poll() is not None or last.problem:
            last.problem = last.problem or 'the server is gone'
            outcomes[-1].reports.append(last)
        if 'Traceback' in load.server.log.read_text():
            outcomes[-1].reports.append(Report('log', 'the server wrote a traceback'))
        return outcomes

    return asyncio.run(run())


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments; see ``--help``."""
    parser = argparse.ArgumentParser(prog='load_test.py', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--requests', type=int, default=200, help='at once; default: 200')
    add('--waves', type=int, default=3, help='one after the other; default: 3')
    add('--checkpoints', metavar='DIR', help='as of app.py')
    add('--models', nargs='*', metavar='NAME', help='as of app.py')
    add('--model', metavar='LABEL', help='to ask; default: the first that the page offers')
    add('--threads', type=int, help='of PyTorch; default: as many as it takes')
    add('--settle', type=float, default=60, help='seconds to tidy up; default: 60')
    add('--patience', type=float, default=300, help='seconds for an answer; default: 300')
    add('--csv', action='store_true', help='write benchmarks/results/demo_load.csv')
    args = parser.parse_args(argv)
    if args.requests < 3 or args.waves < 1 or args.settle <= 0:
        parser.error('at least 3 requests, 1 wave and more than 0 seconds')
    return args


def _record(args, load: Load, outcomes: list[Outcome]) -> Path:
    sys.path.insert(0, str(HERE.parents[1] / 'benchmarks'))
    import common
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    model = load.model or load.page.values[load.page.ids['model-a']]
    rows = [
        common.conditions() | dict(model=model, wave=number) | outcome.row()
        for number, outcome in enumerate(outcomes, 1)
    ]
    return common.write_csv('demo_load', rows)


def main(argv=None) -> int:
    """Run the load test; return the exit status.

    Args:
        argv (list[str], optional): Arguments; those of the process if None.

    Returns:
        int: 0, 1 if something is wrong, 2 if the demo does not start.
    """
    args, console = parse_args(argv), Console()
    arguments = []
    if args.checkpoints:
        arguments += ['--checkpoints', Path(args.checkpoints).resolve()]
    if args.models is not None:
        arguments += ['--models', *args.models]
    with tempfile.TemporaryDirectory(prefix='demo_load_') as place:
        try:
            server = Server(Path(place) / 'server', arguments, args.threads)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
        try:
            load = Load(server, args.model, 20, args.settle, patience=args.patience)
            outcomes = run_load(load, args.requests, args.waves, console)
        finally:
            server.stop()
        left = [str(path) for path in server.temporary.iterdir()]
        log = server.log.read_text()
    table = Table('', *(f'wave {number + 1}' for number in range(len(outcomes))))
    rows = [outcome.row() for outcome in outcomes]
    for name in rows[0]:
        table.add_row(name.replace('_', ' '), *(str(row[name]) for row in rows))
    console.print(table)
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    problems += [f'left when it stopped: {path}' for path in left if 'coc_mm_demo_' in path]
    for problem in problems:
        console.print(problem, markup=False)
    if problems:
        console.print(log[-3000:], markup=False)
    if args.csv:
        console.print(f'Written: {_record(args, load, outcomes)}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
