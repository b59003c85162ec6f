#!/usr/bin/env python
"""Train and test a classifier, a detector and a segmentor on embedded data."""

from coc_mm.cli.quickstart import main

if __name__ == '__main__':
    raise SystemExit(main())
