"""The values that occur in index masks, read once and remembered."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image
from rich.progress import track

from coc_mm.utils.atomic_io import atomic_write
from coc_mm.utils.cache import cache_folder

__all__ = ['UNLABELED', 'mask_values']

UNLABELED = 255
_MODES = ('1', 'L', 'P', 'I', 'I;16')
_SHOW_PROGRESS = 500  # masks from which on a bar is shown


def mask_values(folder: Path, names: Sequence[str]) -> dict[str, list[int]]:
    """Read which values occur in masks (name -> ascending), but for 255, which is unlabeled.

    Kept in the cache folder for files of the same size and time. A ValueError names a mask that
    cannot be read, or has something else than one channel of 0 to 255.
    """
    digest = sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    cache = cache_folder('masks') / f'{digest}.json'
    with FileLock(f'{cache}.lock'):  # of several processes one reads
        try:
            known = json.loads(cache.read_text())
        except (OSError, ValueError):
            known = {}
        stats = {name: (folder / name).stat() for name in names}
        stamps = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        fresh = [name for name in names if known.get(name, [None])[:-1] != stamps[name]]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = track(
                pool.map(_values, [folder / name for name in fresh]),
                f'reading the masks in {folder}',
                total=len(fresh),
                transient=True,
                disable=len(fresh) < _SHOW_PROGRESS,
            )
            for name, values in zip(fresh, found, strict=True):
                known[name] = [*stamps[name], values]
        if fresh:
            with atomic_write(cache) as path:
                path.write_text(json.dumps(known))
    return {name: known[name][-1] for name in names}


def _values(path: Path) -> list[int]:
    try:
        with Image.open(path) as mask:
            mode = mask.mode
            if mode in _MODES:
                values = np.unique(np.asarray(mask, dtype=np.int64))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f'mask {path} cannot be read ({str(error)[:200]}); replace it, or take it away with '
            'its image.'
        ) from None
    if mode not in _MODES:
        what = 'values that are no whole numbers' if mode == 'F' else 'several channels'
        raise ValueError(
            f'mask {path} has {what} ({mode}): a mask has one channel, whose values are the '
            'indices of the classes (an 8-bit gray or palette PNG).'
        )
    if values[0] < 0 or values[-1] > UNLABELED:
        raise ValueError(f'mask {path} has the value {values[-1]}; at most 255 are possible.')
    return [int(value) for value in values if value != UNLABELED]
