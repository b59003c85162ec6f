"""``tools/model_converters/official_to_coc_mm.py``: convert official weights."""

from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module

from coc_mm.cli.options import at_least, make_parser
from coc_mm.errors import run_command


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Convert official Context-Cluster weights: archives of timm (.pth.tar), checkpoints of '
        'mmdet 2.x and mmseg 0.x, in the layouts of the release, of the submission and of '
        'openmixup.',
    )
    add = parser.add_argument
    add('src', help='the official file')
    add('dst', help='the file to write: .pth or .safetensors')
    add('--task', help='classification, detection, segmentation; default: recognised from the keys')
    add('--arch', help='needed where weights fit several (tiny, tiny2, tiny_plain)')
    add(
        '--denominator',
        choices=('similarity', 'count'),
        help='what clusters are divided by; default: count for the layouts of the submission and '
        'of openmixup, else by the commit or the date in the file, similarity without either',
    )
    add(
        '--proposals',
        type=at_least(1),
        metavar='N',
        help='of dense models: N x N centers per region; default: from the config in the file',
    )
    add('--ema', action='store_true', help='take the averaged weights')
    add('--force', action='store_true', help='replace DST if it exists')
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None, layouts: Sequence[str] = ()) -> None:
    """Convert a file; ``layouts`` are modules that register some, left out where they are not."""
    args = parse(argv)
    from coc_mm.apis.convert import convert_checkpoint
    from coc_mm.checkpoints.save import check_target, save_checkpoint

    for name in layouts:
        with suppress(ModuleNotFoundError):
            import_module(name)
    path = check_target(args.dst, args.force)
    converted = convert_checkpoint(
        args.src, args.task, args.arch, args.denominator, args.proposals, args.ema
    )
    save_checkpoint(converted, path)
    print(f'wrote {path}')


def main(argv: Sequence[str] | None = None, layouts: Sequence[str] = ()) -> int:
    """Run the command; return its exit status."""
    return run_command(partial(run, layouts=layouts), argv)
