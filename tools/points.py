#!/usr/bin/env python
"""Train PointMLP with context clusters on clouds; without CONFIG on synthetic solids."""

import sys
from pathlib import Path

from coc_mm.cli import train

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for custom_imports
CONFIGS = Path(__file__).resolve().parents[1] / 'projects' / 'point_cloud' / 'configs'


def main() -> int:
    """Train as tools/train.py does, with the project's configs by name."""
    if not sys.argv[1:] or (sys.argv[1] not in ('-h', '--help') and sys.argv[1].startswith('-')):
        sys.argv.insert(1, 'pointmlp-coc_quick_solids')
    named = CONFIGS / f'{sys.argv[1]}.py'
    sys.argv[1] = str(named) if named.is_file() else sys.argv[1]
    return train.main()


if __name__ == '__main__':
    raise SystemExit(main())
