"""Strip a training checkpoint: what ``tools/model_converters/publish.py`` runs."""

import argparse
from collections.abc import Sequence

from coc_mm.checkpoints.publish import publish
from coc_mm.errors import print_rank0

__all__ = ['run_publish']


def run_publish(argv: Sequence[str] | None = None) -> None:
    """Publish a checkpoint.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Raises:
        CheckpointError: The source cannot be read or the target not be written.
    """
    parser = argparse.ArgumentParser(
        prog='publish.py',
        description='Keep the weights of a training checkpoint and what prediction needs of its '
        'metadata; name the file by a hash of the weights.',
    )
    parser.add_argument('src', help='a checkpoint of a training')
    parser.add_argument('dst', help='DIR/NAME.pth or .safetensors; writes DIR/NAME-HASH.pth')
    parser.add_argument(
        '--no-ema',
        action='store_true',
        help='of a run with EMA, take the weights of training instead of their average',
    )
    parser.add_argument('--force', action='store_true', help='replace a file of that name')
    args = parser.parse_args(argv)
    print_rank0(f'wrote {publish(args.src, args.dst, not args.no_ema, args.force)}')
