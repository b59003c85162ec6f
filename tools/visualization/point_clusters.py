#!/usr/bin/env python
"""Draw which cluster, or which sampled center, every point of a cloud belongs to."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # for projects, and for coc_mm

from coc_mm.errors import run_command


def main(argv=None) -> int:
    """Draw; return the exit status.

    Args:
        argv (list[str], optional): Arguments; those of the process if None.

    Returns:
        int: 0, or 2 after a message about what the user gave.
    """
    from projects.point_cloud.point_cloud.visualization.command import run_point_clusters

    return run_command(run_point_clusters, argv)


if __name__ == '__main__':
    sys.exit(main())
