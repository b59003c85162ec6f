"""``tools/analysis_tools/model_complexity.py``: parameters and multiply-adds of models."""

import csv
import fnmatch
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

from coc_mm.cli.options import add_shape, make_parser
from coc_mm.errors import UserError, run_command


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser("Parameters and multiply-adds of models, beside the paper's.")
    parser.add_argument(
        'names', nargs='*', help='names of models, * and ? understood; default: the classifiers'
    )
    add_shape(parser, 'height and width of the image, or both', minimum=32)
    parser.add_argument('--csv', action='store_true', help='print CSV, in units, not a table')
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Print a table of models of the zoo, or CSV."""
    args = parse(argv)

    from rich.console import Console

    from coc_mm.apis.complexity import COLUMNS, complexity_row
    from coc_mm.apis.model_zoo import find_entry, list_models

    names = [] if args.names else list_models(task='classification')
    for given in args.names:
        found = fnmatch.filter(list_models(), given.lower())
        names += found or [find_entry(given).name]
    try:
        rows = [complexity_row(name, args.shape) for name in dict.fromkeys(names)]
    except ModuleNotFoundError as error:
        raise UserError(f'{error}: install it, or name models of a library you have.') from None
    if args.csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    else:
        console = Console()
        width = None if console.is_terminal else 160
        Console(width=width).print(_table(rows))


def _table(rows: list[dict]) -> Any:
    from rich.table import Table

    table = Table(
        *('model', 'image', 'parameters\nM', '\n/ 2^20', 'paper', 'multiply-adds\nG'),
        *('\n/ 2^30', 'of them\nclustering', 'paper', 'counted'),
        caption='The paper divides parameters by 2^20 and multiply-adds by 2^30. Its parameters '
        'of the detectors do not follow from the released code, in either unit.',
    )
    for row in rows:
        parameters, macs = row['parameters'], row['multiply-adds']
        table.add_row(
            row['model'],
            f'{row["height"]}x{row["width"]}',
            f'{parameters / 1e6:.1f}',
            f'{parameters / 2**20:.1f}',
            _blank(row['paper parameters']),
            f'{macs / 1e9:.1f}',
            f'{macs / 2**30:.1f}',
            f'{row["of clustering"] / 1e9:.2f}',
            _blank(row['paper multiply-adds']),
            row['counted'],
        )
    return table


def _blank(value: object) -> str:
    return '' if value is None else str(value)


main = partial(run_command, run)
