"""Reading archives that are not trusted, and unpacking them without leaving half a tree."""

import errno
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any

__all__ = [
    'Entry',
    'Limits',
    'PrepareError',
    'is_file_of',
    'naming_damage',
    'read_tar',
    'read_zip',
    'unpack',
]

CHUNK = 1 << 20
# What macOS adds to archives; never data.
_JUNK = ('__MACOSX', '.DS_Store')
# Where this package keeps what it needs itself; see tree.py, too.
_OURS = ('.unpacking', '.prepared', '.prepare.lock')
# What tarfile, zipfile and the decompressors say of a damaged file.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error),
    # Names that are no text, sizes below zero, a member encrypted by its own header alone, a
    # compression method that zipfile does not know (NotImplementedError).
    *(ValueError, RuntimeError, IndexError, OverflowError),
)


class PrepareError(ValueError):
    """A data set cannot be prepared from what is there; the message says the way out."""


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most, so that a small file cannot fill a disk.

    Args:
        bytes (int): Of all members together, unpacked.
        members (int): Their number.
    """

    bytes: int
    members: int


@dataclass(frozen=True)
class Entry:
    """A regular file in an archive.

    Args:
        name (str): Where it belongs, relative to the root, with ``/``.
        size (int): In bytes, as the archive declares it.
        open (Callable[[], IO[bytes]]): Gives its content; only until the next entry is asked for.
        archive (str): What it comes from, for messages.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    archive: str


class _Guard:
    """Refuses names that leave the folder, files that are none, and more than the limits."""

    def __init__(self, path: Path | str, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.bytes = 0
        self.members = 0
        self.names: set[str] = set()
        self.folders: set[str] = set()

    def refuse(self, reason: str) -> None:
        raise PrepareError(
            f'{self.path}: {reason}; nothing of this archive is trusted.\n'
            'Remove it and fetch it again from where the data set is published.'
        )

    def count(self, name: str, size: int) -> None:
        """Count a member of any kind.

        Args:
            name (str): As the archive has it.
            size (int): Declared, in bytes.
        """
        self.members += 1
        self.bytes += size
        if self.members > self.limits.members:
            self.refuse(f'more than {self.limits.members} members')
        if size < 0 or self.bytes > self.limits.bytes:
            self.refuse(
                f'its members up to {name!r} declare {self.bytes / 1e9:.1f} GB, more than the '
                f'{self.limits.bytes / 1e9:.1f} GB that this archive may unpack to'
            )

    def clean(self, name: str) -> str:
        """Check the name of a regular file.

        Args:
            name (str): As the archive has it.

        Returns:
            str: The name without ``./``.
        """
        pure = PurePosixPath(name)
        # Windows reads backslashes as separators and a colon as a drive or stream.
        if pure.is_absolute() or '..' in pure.parts or any(c in name for c in '\\:\0'):
            self.refuse(f'member {name!r} would land outside of its folder')
        clean = pure.as_posix()
        sizes = [len(os.fsencode(part)) for part in pure.parts]
        fits = len(os.fsencode(clean)) <= 1024 and max(sizes, default=0) <= 255 and len(sizes) <= 64
        if clean == '.' or not fits or pure.parts[0] in _OURS:
            self.refuse(f'member {name[:80]!r} has a name that cannot be used')
        folded = clean.casefold()
        if folded in self.names:
            self.refuse(f'member {name!r} is there twice')
        above = {parent.as_posix() for parent in PurePosixPath(folded).parents}
        if folded in self.folders or above & self.names:
            self.refuse(f'member {name!r} is in the place of a folder, or below a file')
        self.names.add(folded)
        self.folders |= above
        return clean


def _is_junk(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and (parts[0] == _JUNK[0] or parts[-1] == _JUNK[1])


def read_zip(path: Path, limits: Limits) -> Iterator[Entry]:
    """Go through the files of a zip; their CRC is verified while they are read.

    Args:
        path (Path): The archive.
        limits (Limits): What it may hold.

    Yields:
        Entry: Regular files. All names and sizes are checked before the first.

    Raises:
        PrepareError: No zip, truncated, or with members that do not belong in a data set.
    """
    with naming_damage(path), zipfile.ZipFile(path) as archive:
        guard = _Guard(path, limits)
        found = []
        for info in archive.infolist():
            guard.count(info.filename, info.file_size)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                guard.refuse(f'member {info.filename!r} is a link or a device')
            if info.flag_bits & 0x1:
                guard.refuse(f'member {info.filename!r} is encrypted')
            if not info.is_dir() and not _is_junk(info.filename):
                found.append((guard.clean(info.filename), info))
        for name, info in found:
            yield Entry(name, info.file_size, partial(archive.open, info), str(path))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None, 'regular files have content'
    return content


def read_tar(path: Path | str, limits: Limits, stream: IO[bytes] | None = None) -> Iterator[Entry]:
    """Go through the files of a tar, compressed or not.

    Args:
        path (Path | str): The archive, or what to call it where ``stream`` is given.
        limits (Limits): What it may hold.
        stream (IO[bytes], optional): The archive inside of another.

    Yields:
        Entry: Regular files, each checked before it is given.

    Raises:
        PrepareError: No tar, truncated, or with members that do not belong in a data set.
    """
    source: dict[str, Any] = dict(name=path) if stream is None else dict(fileobj=stream)
    with naming_damage(path), tarfile.open(**source) as archive:
        guard = _Guard(path, limits)
        for member in archive:
            guard.count(member.name, member.size)
            if member.isdir():
                continue
            if not member.isreg():
                guard.refuse(f'member {member.name!r} is a link or a device')
            if not _is_junk(member.name):
                name = guard.clean(member.name)
                yield Entry(name, member.size, partial(_content, archive, member), str(path))


@contextmanager
def naming_damage(path: Path | str) -> Iterator[None]:
    """Turn what the libraries say of a damaged archive into a sentence that names it.

    Args:
        path (Path | str): The archive.

    Raises:
        PrepareError: It is damaged.
    """
    try:
        yield
    except PrepareError:
        raise
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise PrepareError(
            f'{path} is damaged or no such archive ({str(error)[:200] or type(error).__name__}); '
            'remove it and fetch it again.'
        ) from error


def _write(entry: Entry, path: Path, on_bytes: Callable[[int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with naming_damage(entry.archive), entry.open() as source, path.open('wb') as target:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > entry.size:
                break
            target.write(chunk)
            on_bytes(len(chunk))
    if written != entry.size:
        raise PrepareError(
            f'{entry.archive} is damaged: {entry.name} has {written} bytes or more where '
            f'{entry.size} are declared; remove it and fetch it again.'
        )


def _settle(unit: str, names: list[str], stage: Path, root: Path) -> None:
    """Move what was unpacked to its place: a new folder at once, else file by file."""
    if not names:
        return
    target = root / unit
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.rename(stage / unit, target)
        return
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / name, root / name)


def is_file_of(path: Path, size: int) -> bool:
    """Tell whether a regular file of a size is there.

    Args:
        path (Path): The file.
        size (int): In bytes.

    Returns:
        bool: True if it is.
    """
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def unpack(
    entries: Iterable[Entry],
    root: Path,
    unit_depth: int = 1,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> dict[str, int]:
    """Unpack what a tree lacks; a reader of the tree never meets half a file or folder.

    Files go into ``root/.unpacking`` first. A folder that is not there yet appears in one
    rename; into one that is there, files are moved one by one.

    Args:
        entries (Iterable[Entry]): What belongs into the tree.
        root (Path): Where the tree lies or shall lie.
        unit_depth (int): Length of the leading path that makes a folder which appears at once.
        on_bytes (Callable[[int], None]): Told of bytes as they are written or found present.

    Returns:
        dict[str, int]: Name and size of every entry, those that were there included.

    Raises:
        PrepareError: An archive is damaged, or the disk is full. Nothing of the unit it
            happened in is left behind.
    """
    stage = root / '.unpacking'
    shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
    stage.mkdir(parents=True)
    listing = {}
    try:
        for unit, group in groupby(entries, key=lambda e: '/'.join(e.name.split('/')[:unit_depth])):
            fresh = []
            for entry in group:
                listing[entry.name] = entry.size
                if is_file_of(root / entry.name, entry.size):
                    on_bytes(entry.size)
                    continue
                _write(entry, stage / entry.name, on_bytes)
                fresh.append(entry.name)
            _settle(unit, fresh, stage, root)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename2 or error.filename or root
            raise PrepareError(
                f'{where} cannot be written or read ({error.strerror or error}); remove what is in '
                'the way, or name another folder with --root.'
            ) from error
        raise PrepareError(
            f'the disk of {root} is full; make room and run the same command again, it goes on '
            'where it stopped.'
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return listing
