"""Configs and scripts that belong to the package: of the wheel, or of the checkout."""

import difflib
from pathlib import Path

from coc_mm.errors import UserError


def zoo_root() -> Path:
    """Find the folder with ``configs`` and ``tools``, of the package or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    for root in (package / '.mim', package.parent):
        if (root / 'model-index.yml').is_file() and (root / 'configs').is_dir():
            return root
    raise UserError(
        f'no configs belong to coc_mm in {package}; install the package anew (pip install .), '
        'which packs them, or work in a checkout.'
    )


def find_config(name: str) -> Path:
    """Find a config of the package by its name (``coc-small_8xb128_in1k``), in any case."""
    files = {path.stem.lower(): path for path in sorted(zoo_root().glob('configs/[!_]*/*.py'))}
    if found := files.get(name.lower()):
        return found
    near = difflib.get_close_matches(name.lower(), files, n=1)
    hint = f'did you mean {near[0]}?' if near else 'coc models lists the names.'
    raise UserError(f'{name} is neither a config file nor the name of a config of coc_mm; {hint}')
