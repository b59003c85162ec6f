"""The command: stages in order, a summary, a table, pictures."""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from coc_mm.quickstart.runs import StageRun, write_json
from coc_mm.quickstart.tasks import STAGES, Stage, fingerprint, in_order

__all__ = ['parse_quickstart', 'run_quickstart']


def _key_value(text: str) -> str:
    if '=' not in text or text.startswith('='):
        raise argparse.ArgumentTypeError(f'expected KEY=VALUE, got {text!r}')
    return text


def parse_quickstart(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of ``tools/quickstart.py``.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Returns:
        argparse.Namespace: ``tasks work_dir fresh cfg_options``.

    Raises:
        SystemExit: With status 2 and the usage on stderr.
    """
    parser = argparse.ArgumentParser(
        prog='quickstart.py',
        description='Train and test a classifier, a detector and a segmentor on handwritten '
        'digits that come with scikit-learn. What is finished is reused, what was interrupted '
        'is continued.',
    )
    parser.add_argument(
        'tasks',
        nargs='*',
        metavar='TASK',
        help=f'{", ".join(STAGES)}; default: all. The latter two start from the first.',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/quickstart'),
        help='where everything goes; default: work_dirs/quickstart',
    )
    parser.add_argument(
        '--fresh', action='store_true', help='run the tasks anew, whatever has been finished'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=_key_value,
        default=[],
        metavar='KEY=VALUE',
        help='override entries of all configs, or of one: detection.train_cfg.max_epochs=2',
    )
    args = parser.parse_args(argv)
    unknown = [task for task in args.tasks if task not in STAGES]
    if unknown:
        parser.error(f'no task {unknown[0]!r}; there are {", ".join(STAGES)}')
    return args


def run_quickstart(argv: Sequence[str] | None = None) -> None:
    """Run the quickstart, as ``tools/quickstart.py`` does.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Raises:
        UserError: A stage failed, or an argument cannot be used.
    """
    args = parse_quickstart(argv)
    console = Console()
    stages = in_order(args.tasks)
    for stage in stages:  # before anything long starts, see that all of it can
        fingerprint(stage, args.cfg_options)
    started = time.monotonic()
    runs = {
        name: StageRun(stage, args.work_dir, args.cfg_options, console)
        for name, stage in STAGES.items()
    }
    for wave in _waves(stages):
        # Side by side each stage has its share of the cores, which small models use better than
        # one stage uses all; bars of two would fight over the screen, so they print lines.
        alone = len(wave) == 1
        for stage in wave:
            run = runs[stage.name]
            if not alone:
                run.console = Console(force_terminal=False)
                run.threads = max((os.cpu_count() or 1) // len(wave), 1)
            if args.tasks and stage.name not in args.tasks and run.results() is None:
                console.print(
                    f'{", ".join(args.tasks)} starts from the {stage.name}, which comes first.'
                )
        with ThreadPoolExecutor(len(wave)) as pool:
            waiting = [
                pool.submit(
                    runs[stage.name].complete,
                    fresh=args.fresh and (not args.tasks or stage.name in args.tasks),
                )
                for stage in wave
            ]
        write_summary(args.work_dir, runs)  # of one that is finished, too, if the other failed
        for future in waiting:
            future.result()
    _draw(args.work_dir, runs, console)
    console.print(_table(runs, time.monotonic() - started))
    console.print(f'summary:  {args.work_dir / "summary.json"}', highlight=False)


def _waves(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Group stages that may run side by side, those that others start from first."""
    waves = [[s for s in stages if not s.needs], [s for s in stages if s.needs]]
    return [wave for wave in waves if wave]


def summarize(runs: dict[str, StageRun]) -> dict[str, dict[str, float]]:
    """Gather the results of all finished stages.

    Args:
        runs (dict[str, StageRun]): By name.

    Returns:
        dict: Stage to metric to value, with ``seconds``.
    """
    found = {name: run.results() for name, run in runs.items()}
    return {
        name: {**record.metrics, 'seconds': round(record.seconds, 1)}
        for name, record in found.items()
        if record
    }


def write_summary(work_dir: Path, runs: dict[str, StageRun]) -> None:
    """Write ``summary.json``; where nothing is finished, none is left behind.

    Args:
        work_dir (Path): The folder.
        runs (dict[str, StageRun]): By name.
    """
    path, summary = work_dir / 'summary.json', summarize(runs)
    if summary:
        write_json(path, summary)
    else:
        path.unlink(missing_ok=True)


def _table(runs: dict[str, StageRun], seconds: float) -> Table:
    """The results of the finished stages, for the screen."""
    title = f'quickstart, {seconds:.0f} s this time'
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ('task', 'model', 'metric'):
        table.add_column(column, no_wrap=True)
    for column in ('value', 'time', 'was'):
        table.add_column(column, justify='right', no_wrap=True)
    for name, run in runs.items():
        record = run.results()
        if record is None:
            continue
        for i, metric in enumerate(run.stage.metrics):
            value = metric.format(record.metrics[metric.key])
            if i == 0:
                how = run.how or 'kept'
                took = f'{record.seconds:.0f} s'
                table.add_row(name, run.stage.model, metric.title, value, took, how)
            else:
                table.add_row('', '', metric.title, value, '', '')
    return table


def _draw(work_dir: Path, runs: dict[str, StageRun], console: Console) -> None:
    """Draw what is not drawn yet, or older than what it shows."""
    from coc_mm.quickstart.pictures import draw_pictures

    for path in draw_pictures(work_dir / 'pictures', runs):
        console.print(f'picture:  {path}', highlight=False)
