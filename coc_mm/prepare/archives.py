"""Reading tar and zip archives, and unpacking them so that no half folder is left."""

import errno
import gzip
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, NamedTuple

from coc_mm.errors import PrepareError

# Members are held against a folder without links, wherever they go afterwards.
_DESTINATION = '/destination'
# What tarfile, zipfile and the decompressors raise about damaged or odd files.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, struct.error, ValueError, RuntimeError, IndexError, OverflowError),
)


class Entry(NamedTuple):
    """A regular file in an archive; ``open`` gives its content until the next is asked for."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def read_archive(path: Path, stream: IO[bytes] | None = None) -> Iterator[Entry]:
    """Go through the regular files of a tar, compressed or not, or of a zip.

    ``stream`` is a tar inside of another, read instead of ``path``. Members that would land outside
    of the root raise :class:`tarfile.FilterError`.
    """
    if stream is None and not tarfile.is_tarfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                member = tarfile.data_filter(tarfile.TarInfo(info.filename), _DESTINATION)
                if not info.is_dir():
                    yield Entry(member.name, info.file_size, partial(archive.open, info))
        return
    with tarfile.open(fileobj=stream) if stream else tarfile.open(path) as tar:
        for found in tar:
            member = tarfile.data_filter(found, _DESTINATION)
            if member.isreg():
                content = partial(tar.extractfile, found)
                yield Entry(member.name, member.size, content)  # type: ignore[arg-type]


@contextmanager
def explain_damage(path: Path | str) -> Iterator[None]:
    """Raise what the libraries say of a damaged archive as :class:`PrepareError` naming it."""
    try:
        yield
    except PrepareError:
        raise
    except _DAMAGE as error:
        raise PrepareError(
            f'{path} is damaged or no such archive ({str(error)[:200] or type(error).__name__}); '
            'remove it and fetch it again.'
        ) from error


def has_size(path: Path, size: int) -> bool:
    """Tell whether a regular file of a size in bytes is there."""
    return path.is_file() and path.stat().st_size == size


def unpack(
    entries: Iterable[Entry],
    root: Path,
    source: Path | str,
    unit_depth: int = 1,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> dict[str, int]:
    """Unpack what a tree lacks; a reader of the tree never meets half a file or folder.

    Files go into ``root/.unpacking`` first. A folder (the first ``unit_depth`` names of a path)
    that is not there yet appears in one rename; into one that is there, files are moved one by
    one. ``on_bytes`` is called with the bytes of each file written or present.

    Returns name and size of every entry, those that were there included.
    """
    stage = root / '.unpacking'
    shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
    listing = {}
    try:
        with explain_damage(source):
            for unit, group in groupby(entries, lambda e: '/'.join(e.name.split('/')[:unit_depth])):
                fresh = []
                for entry in group:
                    listing[entry.name] = entry.size
                    if not has_size(root / entry.name, entry.size):
                        path = stage / entry.name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        with entry.open() as content, path.open('wb') as file:
                            shutil.copyfileobj(content, file, 1 << 20)
                        fresh.append(entry.name)
                    on_bytes(entry.size)
                # A new folder at once, else file by file.
                for name in fresh if (root / unit).exists() else [unit] if fresh else []:
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(stage / name, root / name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PrepareError(
                f'the disk of {root} is full; make room and run the same command again, it goes '
                'on where it stopped.'
            ) from error
        where = error.filename2 or error.filename or root
        raise PrepareError(
            f'{where} cannot be written or read ({error.strerror or error}); remove what is in '
            'the way, or name another folder with --root.'
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return listing
