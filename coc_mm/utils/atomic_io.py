"""Atomic writing of files."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coc_mm.errors import CheckpointError


@contextmanager
def atomic_write(
    path: str | os.PathLike, *, sync: bool = False, suffix: str = '.part'
) -> Iterator[Path]:
    """Give a path to write to, beside ``path``, and move the file there at the end.

    Whatever ends the process, or with ``sync`` the machine, ``path`` holds all of the new content
    or all of the old; a part of the new may be left under a hidden name. ``suffix`` is for
    writers that go by it. An ``OSError`` names ``path``.
    """
    path = Path(path)
    # Unlike a process, a thread writes one file at a time.
    partial = path.with_name(f'.{path.name}.{threading.get_native_id()}{suffix}')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if sync:
            _sync(partial)
        os.replace(partial, path)
        if sync:
            with suppress(OSError):  # some file systems refuse this for folders, and need it not
                _sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(partial)):
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial_files(folder: str | os.PathLike) -> list[Path]:
    """Remove and list what killed runs left of files that they were writing."""
    folder = Path(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    partial = [folder / name for name in names if re.match(r'\..+\.\d+\.part$', name)]
    for path in partial:
        path.unlink(missing_ok=True)
    return partial


def check_writable(folder: str | os.PathLike) -> None:
    """Raise a :class:`CheckpointError` where no file can be written; no new folder is left."""
    missing = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
    try:
        with atomic_write(Path(folder) / '.probe') as probe:
            probe.write_bytes(b'x')
        Path(folder, '.probe').unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f'the folder {folder} cannot be written to ({error.strerror or error}); name another '
            'one with --work-dir.'
        ) from error
    finally:
        with suppress(OSError):  # another run has begun to use it
            for path in missing:
                path.rmdir()
