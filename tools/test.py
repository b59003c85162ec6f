#!/usr/bin/env python
"""Test a model of mmpretrain, mmdet or mmseg from a config."""

import sys
from pathlib import Path

from coc_mm.cli.test import main

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for custom_imports of projects

if __name__ == '__main__':
    raise SystemExit(main())
