"""``tools/model_converters/publish.py``: strip a training checkpoint, name it by its hash."""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial

from coc_mm.cli.options import make_parser
from coc_mm.errors import run_command


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'Keep the weights of a training checkpoint and what prediction needs of its metadata; '
        'name the file by a hash of the weights.',
    )
    add = parser.add_argument
    add('src', help='a checkpoint of a training')
    add('dst', help='DIR/NAME.pth or .safetensors; writes DIR/NAME-HASH.pth')
    add('--no-ema', action='store_true', help='take the weights of training, not their average')
    add('--force', action='store_true', help='replace a file of that name')
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Publish a checkpoint; raises a ``CheckpointError`` where a file cannot be used."""
    args = parse(argv)
    from coc_mm.checkpoints.publish import publish

    print(f'wrote {publish(args.src, args.dst, not args.no_ema, args.force)}')


main = partial(run_command, run)
