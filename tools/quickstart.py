#!/usr/bin/env python
"""Train and test a classifier, a detector and a segmentor on embedded data."""

import sys
from pathlib import Path

try:
    import coc_mm
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import coc_mm  # noqa: F401

from coc_mm.errors import run_command


def main(argv=None) -> int:
    """Run the quickstart; return the exit status.

    Args:
        argv (list[str], optional): Arguments; those of the process if None.

    Returns:
        int: 0, or 2 after a message about what failed.
    """
    from coc_mm.cli.quickstart import run_quickstart

    return run_command(run_quickstart, argv)


if __name__ == '__main__':
    sys.exit(main())
