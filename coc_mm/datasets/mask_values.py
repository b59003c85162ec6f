"""The values that occur in masks, read once and remembered."""

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

UNLABELED = 255
_SHOW_PROGRESS = 500  # masks from which on a bar is shown
_MAX_COLORS = 1000  # remembered of a mask


def mask_values(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, list[int]]]:
    """Read the mode of masks and which values occur in them, ascending.

    Kept in the cache folder for files of the same size and time. A ValueError names a mask that
    cannot be read, or has something else than one channel of 0 to 255, or three.
    """
    digest = sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    cache = cache_folder('masks') / f'{digest}-modes.json'
    with FileLock(f'{cache}.lock'):  # of several processes one reads
        try:
            known = json.loads(cache.read_text())
        except (OSError, ValueError):
            known = {}
        stats = {name: (folder / name).stat() for name in names}
        stamps = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        fresh = [name for name in names if known.get(name, [None])[:2] != stamps[name]]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = track(
                pool.map(_values, [folder / name for name in fresh]),
                f'reading the masks in {folder}',
                total=len(fresh),
                transient=True,
                disable=len(fresh) < _SHOW_PROGRESS,
            )
            for name, values in zip(fresh, found, strict=True):
                known[name] = [*stamps[name], *values]
        if fresh:
            with atomic_write(cache) as path:
                path.write_text(json.dumps(known))
    return {name: (known[name][2], known[name][3]) for name in names}


def _values(path: Path) -> tuple[str, list[int]]:
    mode, mask = read_mask(path)
    values = np.unique(mask)
    if mode not in ('RGB', 'RGBA') and (values[0] < 0 or values[-1] > UNLABELED):
        raise ValueError(f'mask {path} has the value {values[-1]}; at most 255 are possible.')
    return mode, values[:_MAX_COLORS].tolist()


def read_mask(path: str | Path, colors: bool = False) -> tuple[str, np.ndarray]:
    """Read the mode and the values of a mask, (H, W); colors are red << 16 | green << 8 | blue.

    ``colors``: those of a palette, too.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            rgb = mode in ('RGB', 'RGBA') or colors
            if rgb or mode in ('1', 'L', 'P', 'I', 'I;16'):
                mask = np.asarray(image.convert('RGB') if rgb else image, dtype=np.int64)
                return mode, mask @ [1 << 16, 1 << 8, 1] if rgb else mask
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f'mask {path} cannot be read ({str(error)[:200]}); replace it, or take it away with '
            'its image.'
        ) from None
    what = 'values that are no whole numbers' if mode == 'F' else 'several channels'
    raise ValueError(
        f'mask {path} has {what} ({mode}): a mask has one channel, whose values are the '
        'indices of the classes (an 8-bit gray or palette PNG).'
    )
