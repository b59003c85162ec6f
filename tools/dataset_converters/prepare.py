#!/usr/bin/env python
"""Fetch, verify and unpack ImageNet, COCO, ADE20K or ScanObjectNN."""

import sys
from pathlib import Path

try:
    import coc_mm
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import coc_mm  # noqa: F401

from coc_mm.errors import run_command


def main(argv=None) -> int:
    """Prepare a data set; return the exit status.

    Args:
        argv (list[str], optional): Arguments; those of the process if None.

    Returns:
        int: 0, or 2 after a message about what is wrong or, with ``--check``, missing.
    """
    from coc_mm.cli.prepare import run_prepare

    return run_command(run_prepare, argv)


if __name__ == '__main__':
    sys.exit(main())
