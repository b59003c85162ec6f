#!/usr/bin/env python
"""Train a model of mmpretrain, mmdet or mmseg from a config."""

import sys

from coc_mm.cli.train import main
from coc_mm.compat.malloc import keep_freed_memory

if __name__ == '__main__':
    keep_freed_memory()
    sys.exit(main())
