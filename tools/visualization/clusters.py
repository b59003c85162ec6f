#!/usr/bin/env python
"""Draw which cluster every point of an image belongs to."""

import sys

from coc_mm.cli.clusters import main

if __name__ == '__main__':
    sys.exit(main())
