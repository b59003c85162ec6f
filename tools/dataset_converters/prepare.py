#!/usr/bin/env python
"""Fetch, verify and unpack ImageNet, COCO, ADE20K or ScanObjectNN."""

from coc_mm.cli.prepare import main

if __name__ == '__main__':
    raise SystemExit(main())
