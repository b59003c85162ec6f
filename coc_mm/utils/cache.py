"""The folder for files that can be made again."""

import os
import tempfile
from pathlib import Path

__all__ = ['cache_folder']


def cache_folder(name: str) -> Path:
    """Return ``$COC_MM_CACHE/NAME`` (``~/.cache/coc_mm`` by default), made if it is not there.

    Where that cannot be written, a folder among the temporary files is taken.
    """
    home = Path(os.environ.get('COC_MM_CACHE') or '~/.cache/coc_mm').expanduser()
    for parent in (home, Path(tempfile.gettempdir(), f'coc_mm-{os.getuid()}')):
        folder = parent / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            break
    return folder
