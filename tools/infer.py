#!/usr/bin/env python
"""Predict on images with a model of mmpretrain, mmdet or mmseg."""

from coc_mm.cli.infer import main

if __name__ == '__main__':
    raise SystemExit(main())
