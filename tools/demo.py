#!/usr/bin/env python
"""Look at predictions and clusters in the browser."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'projects' / 'gradio_demo'))

from app import main

if __name__ == '__main__':
    raise SystemExit(main())
