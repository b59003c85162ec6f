"""``tools/tool.py``: run a script that mmpretrain, mmdet or mmseg brings along."""

import argparse
import difflib
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from coc_mm.cli.options import make_parser
from coc_mm.errors import UserError, run_command
from coc_mm.utils.package_files import find_config


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Run a script of mmpretrain, mmdet or mmseg with our models, operators and checkpoints '
        'at hand, e.g. mmpretrain analysis_tools/confusion_matrix CONFIG CHECKPOINT.'
    )
    parser.add_argument('library', choices=['mmpretrain', 'mmdet', 'mmseg'])
    parser.add_argument('script', nargs='?', help='default: list them')
    rest = "the script's own arguments; names of our configs stand for their files"
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help=rest)
    return parser.parse_args(argv)


def _scripts(library: str) -> dict[str, Path]:
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f'{library} is not installed.')
    tools = Path(spec.submodule_search_locations[0]) / '.mim' / 'tools'
    return {p.relative_to(tools).with_suffix('').as_posix(): p for p in sorted(tools.rglob('*.py'))}


def _config_file(argument: str) -> str:
    """Give the file of a config of ours that is named; any other argument as it is."""
    if argument.startswith('-') or Path(argument).suffix or Path(argument).exists():
        return argument
    try:
        return str(find_config(argument))
    except UserError:
        return argument


def run(argv: Sequence[str] | None = None) -> None:
    """Run a script as ``python SCRIPT ...`` would, after ``import coc_mm``."""
    args = parse(argv)
    scripts = _scripts(args.library)
    if args.script is None:
        print('\n'.join(scripts))
        return
    name = args.script.removesuffix('.py')
    if name not in scripts:
        near = difflib.get_close_matches(name, scripts, n=1, cutoff=0.3)
        hint = f'did you mean {near[0]}?' if near else f'coc tool {args.library} lists them.'
        raise UserError(f'{args.library} has no script {name}; {hint}')
    from coc_mm.checkpoints.load import use_safe_loading

    use_safe_loading()
    script = str(scripts[name])
    sys.path.insert(0, str(scripts[name].parent))
    sys.argv = [script, *map(_config_file, args.arguments)]
    runpy.run_path(script, run_name='__main__')


main = partial(run_command, run)
