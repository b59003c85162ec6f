"""Train and test one task of the quickstart, unless that has been done."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from coc_mm.errors import UserError
from coc_mm.quickstart.progress import LogFollower
from coc_mm.quickstart.tasks import TASKS, Task, fingerprint, shipped, task_config, task_options
from coc_mm.utils.atomic_io import atomic_write

RECORD = 'quickstart.json'


@dataclass
class Record:
    """What is remembered of a task in its folder; ``metrics`` is empty until it is finished."""

    fingerprint: str
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class TaskRun:
    """A task in the quickstart's work dir, where it has a folder.

    :attr:`how` is 'trained', 'resumed' or 'reused' once :meth:`complete` has returned.
    """

    def __init__(
        self, task: Task, work_dir: Path, options: Sequence[str], console: Console
    ) -> None:
        self.task, self.options, self.console = task, options, console
        self.work_dir = Path(work_dir)
        self.folder = self.work_dir / task.name
        self.how = ''
        self.threads: int | None = None

    @property
    def record(self) -> Record | None:
        """What is remembered of this task, None if nothing readable is."""
        try:
            return Record(**json.loads((self.folder / RECORD).read_text(encoding='utf-8')))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def checkpoint(self) -> Path | None:
        """The latest checkpoint, None if there is none that is complete."""
        try:
            named = (self.folder / 'last_checkpoint').read_text(encoding='utf-8').strip()
        except OSError:
            return None
        path = self.folder / Path(named).name  # the folder may have been moved
        return path if zipfile.is_zipfile(path) else None

    def results(self) -> Record | None:
        """Return the record of a finished run with the present config and code, or None."""
        record = self.record
        if record is None or record.fingerprint != fingerprint(self.task, self.options):
            return None
        complete = set(record.metrics) == {metric.key for metric in self.task.metrics}
        return record if complete and self.checkpoint else None

    def complete(self, fresh: bool = False) -> None:
        """Train and test, as far as that has not been done yet; ``fresh`` starts anew."""
        if not fresh and self.results():
            self.how = 'reused'
            self._print(f'reusing the finished run in {self.folder}')
            return
        record = self._resume_or_start(fresh)
        try:
            self._train(record)
            record.metrics = self._test(record)
        finally:  # an interrupted run keeps its time
            self._write(record)

    def _print(self, message: str) -> None:
        text = f'[bold]{self.task.name}[/bold]: {message}'
        self.console.print(text, highlight=False, soft_wrap=True)

    def _write(self, record: Record) -> None:
        with atomic_write(self.folder / RECORD) as file:
            file.write_text(json.dumps(asdict(record), indent=2))

    def _resume_or_start(self, fresh: bool) -> Record:
        """Resume what is there, or set it aside and say why."""
        current, record = fingerprint(self.task, self.options), self.record
        if fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif record and record.fingerprint == current and self.checkpoint:
            self.how = 'resumed'
            self._print(f'continuing from {self.checkpoint}')
            record.metrics = {}
            return record
        elif self.folder.exists() and any(self.folder.iterdir()):
            why = 'has no checkpoint to continue from'
            if record is None:
                why = 'was not made by the quickstart'
            elif record.fingerprint != current:
                why = 'is of another config or other code'
            kept = self.folder.with_name(f'{self.folder.name}.old')
            shutil.rmtree(kept, ignore_errors=True)
            os.replace(self.folder, kept)
            self._print(f'what lies in {self.folder} {why}; it is now in {kept}')
        self.how = 'trained'
        record = Record(current)
        self._write(record)
        return record

    def _train(self, record: Record) -> None:
        epochs = task_config(self.task, self.options).train_cfg.get('max_epochs')
        self._print(f'training {self.task.model} with {self._config}')
        self._run('train', record, ['--work-dir', str(self.folder), '--resume'], epochs)
        if self.checkpoint is None:
            raise UserError(f'{self.task.name}: training left no checkpoint in {self.folder}.')

    def _test(self, record: Record) -> dict[str, float]:
        """Test the last checkpoint and read the metrics from the library's log."""
        folder = self.folder / 'test'
        shutil.rmtree(folder, ignore_errors=True)
        self._run('test', record, [str(self.checkpoint), '--work-dir', str(folder)], None)
        logged = {}
        for path in folder.glob('*/*.json'):
            logged.update(json.loads(path.read_text(encoding='utf-8')))
        lost = [m.logged_as for m in self.task.metrics if m.logged_as not in logged]
        if lost:
            log = f'{self.folder}/test.log'
            raise UserError(f'{self.task.name}: the test logged no {lost[0]}; see {log}')
        return {metric.key: float(logged[metric.logged_as]) for metric in self.task.metrics}

    @property
    def _config(self) -> Path:
        path, here = shipped(f'configs/{self.task.config}'), Path.cwd()
        return path.relative_to(here) if path.is_relative_to(here) else path

    def _run(self, tool: str, record: Record, arguments: list[str], epochs: int | None) -> None:
        """Run ``tools/train.py`` or ``tools/test.py`` as somebody at a terminal would."""
        command = [sys.executable, '-u', str(shipped(f'tools/{tool}.py')), str(self._config)]
        overrides = task_options(self.task.name, self.options)
        if self.task.needs:
            start = TaskRun(TASKS[self.task.needs], self.work_dir, self.options, self.console)
            overrides.append(f'model.backbone.init_cfg.checkpoint={start.checkpoint}')
        command += [*arguments, *(['--cfg-options', *overrides] if overrides else [])]
        # Threads that spin while they wait halve the speed of a machine that does more than this.
        env = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ}
        if self.threads is not None:
            env['OMP_NUM_THREADS'] = str(self.threads)
        log = self.folder / f'{tool}.log'
        started = time.monotonic()
        pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
        with (
            LogFollower(self.console, f'{self.task.name} ({tool})', log, epochs) as follower,
            subprocess.Popen(command, env=env, **pipe) as process,  # type: ignore[call-overload]
        ):
            try:
                for line in process.stdout:
                    follower.feed(line)
                status = process.wait()
            finally:
                process.terminate()  # after an interrupt; an ended process takes no harm
                record.seconds += time.monotonic() - started
        if status:
            raise UserError(
                f'{self.task.name}: tools/{tool}.py ended with status {status}. {log} ends:\n'
                + '\n'.join(f'    {line}' for line in follower.tail)
            )


def run_tasks(
    names: Sequence[str], work_dir: Path, options: Sequence[str], fresh: bool, console: Console
) -> dict[str, TaskRun]:
    """Complete tasks, those first that others start from, and write ``summary.json``.

    No names mean all tasks; ``fresh`` concerns those named. Returns all tasks by name.
    """
    asked = list(names or TASKS)
    wanted = {*asked, *(needed for name in asked if (needed := TASKS[name].needs))}
    for name in wanted:  # before anything long starts, see that all of it can
        fingerprint(TASKS[name], options)
    runs = {name: TaskRun(task, work_dir, options, console) for name, task in TASKS.items()}
    for dependent in (False, True):
        wave = [runs[n] for n in TASKS if n in wanted and bool(TASKS[n].needs) == dependent]
        for run in wave:
            # Side by side each task has its share of the cores, which small models use better
            # than one task uses all; two progress bars would fight over the screen.
            if len(wave) > 1:
                run.console = Console(force_terminal=False)
                run.threads = max((os.cpu_count() or 1) // len(wave), 1)
            if run.task.name not in asked and run.results() is None:
                console.print(
                    f'{", ".join(asked)} starts from the {run.task.name}, which comes first.'
                )
        with ThreadPoolExecutor(max(len(wave), 1)) as pool:
            waiting = [pool.submit(r.complete, fresh and r.task.name in asked) for r in wave]
        _write_summary(work_dir, runs)  # of one that is finished, too, if the other failed
        for future in waiting:
            future.result()
    return runs


def _write_summary(work_dir: Path, runs: dict[str, TaskRun]) -> None:
    """Write the results of all finished tasks; where none is, no file is left."""
    path = work_dir / 'summary.json'
    found = {name: record for name, run in runs.items() if (record := run.results())}
    summary = {n: {**r.metrics, 'seconds': round(r.seconds, 1)} for n, r in found.items()}
    if summary:
        with atomic_write(path) as file:
            file.write_text(json.dumps(summary, indent=2))
    else:
        path.unlink(missing_ok=True)
