#!/usr/bin/env python
"""Count parameters and multiply-adds of models."""

from coc_mm.cli.complexity import main

if __name__ == '__main__':
    raise SystemExit(main())
