"""Follow the log of a training as it is written, and show how far it is."""

import re
import time
from collections import deque
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ['LogFollower']

_STEP = re.compile(
    r'(?P<mode>Epoch|Iter)\((?P<phase>train|val|test)\)\s+'
    r'(?:\[(?P<epoch>\d+)\])?\[\s*(?P<step>\d+)/\s*(?P<of>\d+)\]'
)
_LOSS = re.compile(r'\bloss: (?P<loss>[\d.]+|nan|inf)')
_METRIC = re.compile(
    r'(?P<name>accuracy/top1|coco/bbox_mAP_50|coco/segm_mAP_50|mIoU): (?P<v>[\d.]+)'
)
# Where no bar can move, a line as often as this, in seconds.
_LINE_EVERY = 20.0


class LogFollower:
    """Turns the lines of mmengine's log into a bar, or into a line now and then.

    Args:
        console (Console): Where to show it.
        title (str): What is running.
        log (Path): File that takes the whole output.
        total_epochs (int | None): Epochs of a training, None for a test.
    """

    def __init__(self, console: Console, title: str, log: Path, total_epochs: int | None) -> None:
        self.console, self.title, self.log = console, title, log
        self.total_epochs = total_epochs
        self.tail: deque[str] = deque(maxlen=25)
        self._note = 'starting'
        self._done = 0.0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> 'LogFollower':
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.log.open('a', encoding='utf-8')
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn('{task.fields[note]}'),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(self.title, total=1.0, note=self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._file.close()

    def feed(self, line: str) -> None:
        """Take one line of output.

        Args:
            line (str): With or without its line end.
        """
        self._file.write(line if line.endswith('\n') else line + '\n')
        self._file.flush()
        self.tail.append(line.rstrip())
        if self._understand(line):
            self._progress.update(self._task, completed=self._done, note=self._note)
            self._say_now_and_then()

    def _understand(self, line: str) -> bool:
        """Read progress, loss and metrics off a line; whether there were any."""
        step = _STEP.search(line)
        if step is None:
            return False
        part = int(step['step']) / int(step['of'])
        metrics = [
            f'{m["name"].split("/")[-1]} {float(m["v"]):.4g}' for m in _METRIC.finditer(line)
        ]
        if step['phase'] == 'train' and self.total_epochs:
            self._done = (int(step['epoch'] or 1) - 1 + part) / self.total_epochs
            loss = _LOSS.search(line)
            self._note = f'epoch {step["epoch"]}/{self.total_epochs}'
            self._note += f', loss {float(loss["loss"]):.3f}' if loss else ''
        elif step['phase'] == 'test':
            self._done = part
            self._note = ''
        if metrics:
            self._report(', '.join(metrics), step)
        return True

    def _report(self, metrics: str, step: re.Match) -> None:
        """Leave a line about a validation on the screen."""
        if step['phase'] == 'val':
            after = f'after epoch {step["epoch"]}' if step['epoch'] else 'validation'
            self.console.print(f'   {after}: {metrics}', highlight=False)
            self._last_line = time.monotonic()

    def _say_now_and_then(self) -> None:
        now = time.monotonic()
        if self.console.is_terminal or now - self._last_line < _LINE_EVERY:
            return
        self._last_line = now
        elapsed = now - self._started
        self.console.print(
            f'   {self.title}: {100 * self._done:.0f} %, {self._note}, {elapsed:.0f} s',
            highlight=False,
        )
