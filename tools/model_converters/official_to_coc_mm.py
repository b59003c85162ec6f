#!/usr/bin/env python
"""Convert official Context-Cluster weights for mmpretrain, mmdet, mmseg and the point clouds."""

import sys
from functools import partial
from pathlib import Path

from coc_mm.cli import convert

sys.path.append(str(Path(__file__).resolve().parents[2]))  # of a checkout, which has projects
main = partial(convert.main, layouts=['projects.point_cloud.point_cloud.official'])

if __name__ == '__main__':
    raise SystemExit(main())
