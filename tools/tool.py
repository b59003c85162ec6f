#!/usr/bin/env python
"""Run a script of mmpretrain, mmdet or mmseg with coc_mm imported."""

from coc_mm.cli.tool import main

if __name__ == '__main__':
    raise SystemExit(main())
