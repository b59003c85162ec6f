"""``tools/model_converters/download.py``: fetch and convert published weights by name."""

from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module

from coc_mm.cli.options import make_parser
from coc_mm.errors import DownloadError, UserError, run_command


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Fetch the published weights of models, convert them and write NAME.pth. COC_MM_MIRROR '
        'names a mirror of the published files, a URL or a folder.'
    )
    add = parser.add_argument
    add('names', nargs='+', metavar='NAME', help='names of models, * and ? understood; or all')
    add('--source', help='released, submission, openmixup, march-2023; default: the newest')
    add('--to', default='checkpoints', metavar='FOLDER', help='default: checkpoints')
    return parser.parse_args(argv)


def run(
    argv: Sequence[str] | None = None, layouts: Sequence[str] = (), metafiles: Sequence[str] = ()
) -> None:
    """Fetch weights; ``layouts`` and ``metafiles`` are those of projects, if they are there."""
    args = parse(argv)
    from coc_mm.apis.model_zoo import find_models
    from coc_mm.apis.published import fetch_weights

    for name in layouts:
        with suppress(ModuleNotFoundError):
            import_module(name)
    found = [x for x in find_models(args.names, metafiles) if args.source in (None, *x.sources)]
    if not found:
        raise UserError(
            f'no weights from {args.source or "any source"} are published for '
            f'{", ".join(args.names)}; docs/model_zoo.md lists them.'
        )
    failed = []
    for entry in found:
        try:
            path = fetch_weights(entry, args.source, args.to)
        except UserError as error:
            if len(found) == 1 or not isinstance(error, DownloadError):
                raise
            print(f'{entry.name}: {error}')
            failed.append(entry.name)
            continue
        print(f'{path} is there. Next:\npython tools/test.py {entry["Config"]} {path}')
    if failed:
        reasons = 'the reasons are above'
        raise DownloadError(
            f'{len(failed)} of {len(found)} failed: {", ".join(failed)} ({reasons}).'
        )


def main(
    argv: Sequence[str] | None = None, layouts: Sequence[str] = (), metafiles: Sequence[str] = ()
) -> int:
    """Run the command; return its exit status."""
    return run_command(partial(run, layouts=layouts, metafiles=metafiles), argv)
