#!/usr/bin/env python
"""Fetch published weights by name and convert them."""

import sys
from functools import partial
from pathlib import Path

from coc_mm.cli import download

root = Path(__file__).resolve().parents[2]  # of a checkout, which has projects
sys.path.append(str(root))
layouts = ['projects.point_cloud.point_cloud.official']
metafiles = [str(root / 'projects' / 'point_cloud' / 'metafile.yml')]
main = partial(download.main, layouts=layouts, metafiles=metafiles)

if __name__ == '__main__':
    raise SystemExit(main())
