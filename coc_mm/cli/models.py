"""``tools/models.py``: list the models that can be had by name."""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial

from coc_mm.cli.options import make_parser
from coc_mm.errors import UserError, run_command


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser('List the models that can be had by name.')
    parser.add_argument('pattern', nargs='?', help='the beginning of names, * and ? understood')
    tasks = ('classification', 'detection', 'segmentation')
    parser.add_argument('--task', choices=tasks, help='default: all')
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Print a line for each model: its name, the paper's figures, where weights are."""
    args = parse(argv)
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from coc_mm.apis.model_zoo import find_entry, list_models

    names = list_models(args.pattern, args.task)
    if not names:
        raise UserError(f'no model matches {args.pattern!r}; coc models lists all.')
    table = Table('model', 'task', 'parameters', "paper's figures", 'weights', box=box.SIMPLE)
    for entry in map(find_entry, names):
        figures = (entry.get('Figures') or {}).get('paper') or {}
        said = ', '.join(f'{key} {value}' for key, value in figures.items())
        parameters = entry['Metadata'].get('Parameters')
        size = f'{parameters / 1e6:.1f} M' if parameters else ''
        table.add_row(entry.name, entry.task, size, said, entry.weights or '')
    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)


main = partial(run_command, run)
