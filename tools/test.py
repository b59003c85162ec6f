#!/usr/bin/env python
"""Test a model of mmpretrain, mmdet or mmseg from a config."""

import sys

from coc_mm.cli.test import main

if __name__ == '__main__':
    sys.exit(main())
