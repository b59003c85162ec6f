#!/usr/bin/env python
"""Draw which cluster every point of an image belongs to."""

from coc_mm.cli.clusters import main

if __name__ == '__main__':
    raise SystemExit(main())
