#!/usr/bin/env python
"""Answer HTTP requests with a classifier or segmentor exported as ONNX."""

from coc_mm.cli.serve import main

if __name__ == '__main__':
    raise SystemExit(main())
