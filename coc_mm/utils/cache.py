"""The folder for files that can be made again."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Make ``$COC_MM_CACHE/NAME`` (``~/.cache/coc_mm/NAME``), else one in the temporary folder."""
    home = Path(os.environ.get('COC_MM_CACHE') or '~/.cache/coc_mm').expanduser()
    for parent in (home, Path(tempfile.gettempdir(), f'coc_mm-{os.getuid()}')):
        folder = parent / name
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            break
    return folder
