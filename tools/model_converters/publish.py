#!/usr/bin/env python
"""Strip a training checkpoint to what prediction needs and name it by its hash."""

from coc_mm.cli.publish import main

if __name__ == '__main__':
    raise SystemExit(main())
