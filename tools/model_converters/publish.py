#!/usr/bin/env python
"""Strip a training checkpoint to what prediction needs and name it by its hash."""

import sys
from pathlib import Path

try:
    import coc_mm
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import coc_mm  # noqa: F401

from coc_mm.errors import run_command


def main(argv=None) -> int:
    """Publish; return the exit status.

    Args:
        argv (list[str], optional): Arguments; those of the process if None.

    Returns:
        int: 0, or 2 after a message about what the user gave.
    """
    from coc_mm.cli.publish import run_publish

    return run_command(run_publish, argv)


if __name__ == '__main__':
    sys.exit(main())
