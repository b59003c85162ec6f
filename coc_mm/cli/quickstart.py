"""The command line of ``tools/quickstart.py``: tasks in order, a summary, a table, pictures."""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from coc_mm.cli.options import make_parser
from coc_mm.errors import run_command
from coc_mm.quickstart import TASK_NAMES
from coc_mm.utils.cfg_options import parse_options

if TYPE_CHECKING:
    from rich.table import Table

    from coc_mm.quickstart.runs import TaskRun


def _key_value(text: str) -> str:
    try:
        parse_options([text])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Train and test a classifier, a detector and a segmentor on handwritten digits that come '
        'with scikit-learn. What is finished is reused, what was interrupted is continued.',
    )
    add = parser.add_argument
    add(
        'tasks',
        nargs='*',
        metavar='TASK',
        help=f'{", ".join(TASK_NAMES)}; default: all. The latter two start from the first.',
    )
    work_dir = Path('work_dirs/quickstart')
    add('--work-dir', type=Path, default=work_dir, help=f'for everything; default: {work_dir}')
    add('--fresh', action='store_true', help='run the tasks anew, whatever has been finished')
    add(
        '--cfg-options',
        nargs='+',
        type=_key_value,
        default=[],
        metavar='KEY=VALUE',
        help='override entries of all configs, or of one: detection.train_cfg.max_epochs=2',
    )
    args = parser.parse_args(argv)
    unknown = [task for task in args.tasks if task not in TASK_NAMES]
    if unknown:
        parser.error(f'no task {unknown[0]!r}; there are {", ".join(TASK_NAMES)}')
    return args


def run(argv: Sequence[str] | None = None) -> None:
    """Run the quickstart."""
    args = parse(argv)
    from rich.console import Console

    from coc_mm.quickstart.runs import run_tasks

    console, started = Console(), time.monotonic()
    runs = run_tasks(args.tasks, args.work_dir, args.cfg_options, args.fresh, console)
    _draw(args.work_dir, runs, console)
    console.print(_table(runs, time.monotonic() - started))
    console.print(f'summary:  {args.work_dir / "summary.json"}', highlight=False)


def _draw(work_dir: Path, runs: dict[str, 'TaskRun'], console) -> None:
    from coc_mm.quickstart.pictures import draw_pictures

    for path in draw_pictures(work_dir / 'pictures', runs):
        console.print(f'picture:  {path}', highlight=False)


def _table(runs: dict[str, 'TaskRun'], seconds: float) -> 'Table':
    """The results of the finished tasks."""
    from rich import box
    from rich.table import Table

    title = f'quickstart, {seconds:.0f} s this time'
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ('task', 'model', 'metric'):
        table.add_column(column, no_wrap=True)
    for column in ('value', 'time', 'was'):
        table.add_column(column, justify='right', no_wrap=True)
    for name, run in runs.items():
        if record := run.results():
            first, last = (name, run.task.model), (f'{record.seconds:.0f} s', run.how or 'kept')
            for metric in run.task.metrics:
                value = metric.format(record.metrics[metric.key])
                table.add_row(*first, metric.title, value, *last)
                first, last = ('', ''), ('', '')
    return table


main = partial(run_command, run)
