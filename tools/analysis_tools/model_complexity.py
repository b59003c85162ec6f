#!/usr/bin/env python
"""Count parameters and multiply-adds of models."""

import sys

from coc_mm.cli.complexity import main

if __name__ == '__main__':
    sys.exit(main())
