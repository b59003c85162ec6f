"""The command line of ``tools/dataset_converters/prepare.py``."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from coc_mm.cli.options import at_least, make_parser
from coc_mm.errors import PrepareError, run_command
from coc_mm.prepare import RECIPES, find_lacking, prepare


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Fetch, verify and unpack a data set into the layout that the configs expect. A second '
        'run does only what is missing.',
    )
    add = parser.add_argument
    add('dataset', choices=list(RECIPES))
    roots = ', '.join(recipe.root for recipe in RECIPES.values())
    add('--root', type=Path, help=f'where the tree shall lie; default: {roots}')
    archives = 'holds archives that you have, gets downloaded ones; default: ROOT/archives'
    add('--archives', type=Path, metavar='FOLDER', help=archives)
    add('--url', help='folder on a web server with the archives, a mirror')
    add('--only', nargs='+', metavar='PART', help='parts, e.g. val2017 annotations')
    add('--jobs', type=at_least(1), default=3, help='files downloaded at once; default: 3')
    add('--skip-checksum', action='store_true', help='trust archives other than the published')
    add('--delete-downloads', action='store_true', help='remove what was downloaded once unpacked')
    add('--check', action='store_true', help='only say what the tree lacks; status 2 if anything')
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Prepare a data set, or check it with ``--check``."""
    args = parse(argv)
    recipe = RECIPES[args.dataset]
    root = args.root or Path(recipe.root)
    if args.archives is not None and not args.archives.is_dir():
        raise PrepareError(f'--archives {args.archives}: no such folder.')
    if args.check:
        lacking = find_lacking(recipe, root, args.only)
        if lacking:
            lines = [f'  {name}: {line}' for name, found in lacking.items() for line in found]
            raise PrepareError('\n'.join([f'{root} lacks', *lines]))
    else:
        flags = (args.only, args.jobs, args.skip_checksum, args.delete_downloads)
        prepare(recipe, root, args.archives, args.url, *flags)
    print(f'{root} is complete.')
    if root != Path(recipe.root):
        print(f'The configs look in {recipe.root}: link it there, or {recipe.configs}.')


main = partial(run_command, run)
