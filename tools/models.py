#!/usr/bin/env python
"""List the models that can be had by name."""

from coc_mm.cli.models import main

if __name__ == '__main__':
    raise SystemExit(main())
