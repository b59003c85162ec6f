#!/usr/bin/env python
"""Draw which cluster, or which sampled center, every point of a cloud belongs to."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # for projects

from projects.point_cloud.point_clusters import main

if __name__ == '__main__':
    raise SystemExit(main())
