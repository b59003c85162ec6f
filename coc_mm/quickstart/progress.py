"""Follow the log of a training as it is written, and show how far it is."""

import re
import time
from collections import deque
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

_STEP = re.compile(
    r'(?:Epoch|Iter)\((?P<phase>train|val|test)\)\s+'
    r'(?:\[(?P<epoch>\d+)\])?\[\s*(?P<step>\d+)/\s*(?P<of>\d+)\]'
)
_LOSS = re.compile(r'\bloss: ([\d.]+|nan|inf)')
_METRIC = re.compile(r'(?:accuracy/|coco/)?(top1|bbox_mAP_50|segm_mAP_50|mIoU): ([\d.]+)')
# Where no bar can move, a line as often as this, in seconds.
_LINE_EVERY = 20.0


class LogFollower:
    """Turns the lines of mmengine's log into a progress bar, or into a line now and then.

    ``log`` takes the whole output; ``total_epochs`` is None for a test.
    """

    def __init__(self, console: Console, title: str, log: Path, total_epochs: int | None) -> None:
        self.console, self.title, self.log = console, title, log
        self.total_epochs = total_epochs
        self.tail: deque[str] = deque(maxlen=25)
        self._note, self._done = 'starting', 0.0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> 'LogFollower':
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.log.open('a', encoding='utf-8')
        self._progress = Progress(
            *Progress.get_default_columns(),  # title, bar, percentage, time left
            TextColumn('{task.fields[note]}'),
            TimeElapsedColumn(),
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
        """Take one line of output, with its line end."""
        self._file.write(line)
        self._file.flush()
        self.tail.append(line.rstrip())
        step = _STEP.search(line)
        if step is None:
            return
        part = int(step['step']) / int(step['of'])
        if step['phase'] == 'train' and self.total_epochs:
            epoch, loss = int(step['epoch'] or 1), _LOSS.search(line)
            self._done = (epoch - 1 + part) / self.total_epochs
            self._note = f'epoch {epoch}/{self.total_epochs}'
            self._note += f', loss {float(loss[1]):.3f}' if loss else ''
        elif step['phase'] == 'test':
            self._done, self._note = part, ''
        self._progress.update(self._task, completed=self._done, note=self._note)
        now = time.monotonic()
        metrics = ', '.join(f'{name} {float(value):.4g}' for name, value in _METRIC.findall(line))
        if metrics and step['phase'] == 'val':
            self._print(f'after epoch {step["epoch"]}: {metrics}')
        elif not self.console.is_terminal and now - self._last_line >= _LINE_EVERY:
            elapsed = now - self._started
            self._print(f'{self.title}: {100 * self._done:.0f} %, {self._note}, {elapsed:.0f} s')

    def _print(self, message: str) -> None:
        self.console.print(f'   {message}', highlight=False)
        self._last_line = time.monotonic()
