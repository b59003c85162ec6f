"""Run one stage of the quickstart, or find that it has been run: train, test, remember."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from coc_mm.errors import UserError
from coc_mm.quickstart.progress import LogFollower
from coc_mm.quickstart.tasks import (
    STAGES,
    Stage,
    find_shipped,
    fingerprint,
    stage_config,
    stage_options,
)

__all__ = ['Record', 'StageRun', 'write_json']

RECORD = 'quickstart.json'
# Threads that wait for each other by spinning halve the speed of a machine that does something
# else besides; sleeping costs little on an idle one.
_CALM_THREADS = {'OMP_WAIT_POLICY': os.environ.get('OMP_WAIT_POLICY', 'PASSIVE')}


def write_json(path: Path, content: object) -> None:
    """Write JSON, all of it or nothing.

    Args:
        path (Path): The file.
        content (object): What to write.
    """
    partial = path.with_name(f'.{path.name}.part')
    partial.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    os.replace(partial, path)


@dataclass
class Record:
    """What is remembered of a stage between two calls, in its folder.

    Args:
        fingerprint (str): Of the run that lies there.
        seconds (float): Time spent on training and testing so far.
        metrics (dict[str, float]): Results, empty until the stage is finished.
    """

    fingerprint: str
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class StageRun:
    """A stage in a work dir.

    Args:
        stage (Stage): The stage.
        work_dir (Path): The quickstart's work dir; the stage has a folder in it.
        options (Sequence[str]): ``KEY=VALUE`` overrides of all stages.
        console (Console): Where to tell about it.

    Attributes:
        how (str): 'trained', 'resumed' or 'reused', once :meth:`complete` is through.
        threads (int | None): Threads that a tool may use; None leaves it to torch.
    """

    def __init__(
        self, stage: Stage, work_dir: Path, options: Sequence[str], console: Console
    ) -> None:
        self.stage, self.options, self.console = stage, options, console
        self.work_dir = Path(work_dir)
        self.folder = self.work_dir / stage.name
        self.how = ''
        self.threads: int | None = None

    @property
    def record(self) -> Record | None:
        """What is remembered of this stage, None if nothing readable is."""
        try:
            return Record(**json.loads((self.folder / RECORD).read_text(encoding='utf-8')))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def checkpoint(self) -> Path | None:
        """The latest checkpoint, None if there is none that is whole."""
        try:
            named = (self.folder / 'last_checkpoint').read_text(encoding='utf-8').strip()
        except OSError:
            return None
        path = self.folder / Path(named).name  # the folder may have been moved
        return path if zipfile.is_zipfile(path) else None

    def results(self) -> Record | None:
        """Find the results of a finished run with the present config and code.

        Returns:
            Record | None: None if the stage must be run, or finished.
        """
        record = self.record
        if record is None or record.fingerprint != fingerprint(self.stage, self.options):
            return None
        complete = set(record.metrics) == {metric.key for metric in self.stage.metrics}
        return record if complete and self.checkpoint else None

    def complete(self, fresh: bool = False) -> Record:
        """Train and test, as far as that has not been done yet.

        Args:
            fresh (bool): Start anew whatever is there. Defaults to False.

        Returns:
            Record: With the metrics.

        Raises:
            UserError: Training or testing ended with an error, or an override does not fit.
        """
        found = None if fresh else self.results()
        if found:
            self.how = 'reused'
            self._say(f'reusing the finished run in {self.folder}')
            return found
        record = self._prepare(fresh)
        try:
            self._train(record)
            record.metrics = self._test(record)
        finally:  # an interrupted run keeps its time
            write_json(self.folder / RECORD, asdict(record))
        return record

    def _say(self, message: str) -> None:
        self.console.print(
            f'[bold]{self.stage.name}[/bold]: {message}', highlight=False, soft_wrap=True
        )

    def _prepare(self, fresh: bool) -> Record:
        """Decide between resuming and starting anew, and make the folder ready."""
        current = fingerprint(self.stage, self.options)
        record = self.record
        if fresh and self.folder.exists():
            shutil.rmtree(self.folder)
        elif record and record.fingerprint == current and self.checkpoint:
            self.how = 'resumed'
            self._say(f'continuing from {self.checkpoint}')
            record.metrics = {}
            return record
        elif self.folder.exists() and any(self.folder.iterdir()):
            self._set_aside(record, current)
        self.how = 'trained'
        self.folder.mkdir(parents=True, exist_ok=True)
        record = Record(current)
        write_json(self.folder / RECORD, asdict(record))
        return record

    def _set_aside(self, record: Record | None, current: str) -> None:
        """Move a folder away that cannot be continued, and say why."""
        if record is None:
            why = 'was not made by the quickstart'
        elif record.fingerprint != current:
            why = 'is of another config or other code'
        else:
            why = 'has no checkpoint to continue from'
        kept = self.folder.with_name(f'{self.folder.name}.old')
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(self.folder, kept)
        self._say(f'what lies in {self.folder} {why}; it is now in {kept}')

    def _train(self, record: Record) -> None:
        epochs = stage_config(self.stage, self.options).train_cfg.get('max_epochs')
        self._say(f'training {self.stage.model} with {self._config}')
        self._run('train', record, ['--work-dir', str(self.folder), '--resume'], epochs)
        if self.checkpoint is None:
            raise UserError(f'{self.stage.name}: training left no checkpoint in {self.folder}.')

    def _test(self, record: Record) -> dict[str, float]:
        """Test the last checkpoint and read the metrics from the library's log."""
        folder = self.folder / 'test'
        shutil.rmtree(folder, ignore_errors=True)
        self._run('test', record, [str(self.checkpoint), '--work-dir', str(folder)], None)
        logged = {}
        for path in folder.glob('*/*.json'):
            logged.update(json.loads(path.read_text(encoding='utf-8')))
        lacking = [
            metric.logged_as for metric in self.stage.metrics if metric.logged_as not in logged
        ]
        if lacking:
            raise UserError(
                f'{self.stage.name}: the test logged no {lacking[0]}; see {self.folder}/test.log'
            )
        return {metric.key: float(logged[metric.logged_as]) for metric in self.stage.metrics}

    @property
    def _config(self) -> Path:
        path = find_shipped(f'configs/{self.stage.config}')
        here = Path.cwd()
        return path.relative_to(here) if path.is_relative_to(here) else path

    def _overrides(self) -> list[str]:
        """The overrides, and where the weights to start from lie."""
        chosen = stage_options(self.stage.name, self.options)
        if self.stage.needs:
            start = StageRun(STAGES[self.stage.needs], self.work_dir, self.options, self.console)
            chosen.append(f'model.backbone.init_cfg.checkpoint={start.checkpoint}')
        return chosen

    def _environment(self) -> dict[str, str]:
        threads = {} if self.threads is None else {'OMP_NUM_THREADS': str(self.threads)}
        return {**os.environ, **_CALM_THREADS, **threads}

    def _run(self, tool: str, record: Record, arguments: list[str], epochs: int | None) -> None:
        """Run ``tools/train.py`` or ``tools/test.py`` as somebody at a terminal would."""
        command = [sys.executable, '-u', str(find_shipped(f'tools/{tool}.py')), str(self._config)]
        command += arguments
        overrides = self._overrides()
        command += ['--cfg-options', *overrides] if overrides else []
        log = self.folder / f'{tool}.log'
        started = time.monotonic()
        with LogFollower(self.console, f'{self.stage.name} ({tool})', log, epochs) as follower:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                env=self._environment(),
            )
            try:
                for line in process.stdout or ():
                    follower.feed(line)
                status = process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
                record.seconds += time.monotonic() - started
        if status:
            raise UserError(
                f'{self.stage.name}: tools/{tool}.py ended with status {status}. {log} ends:\n'
                + '\n'.join(f'    {line}' for line in follower.tail)
            )
