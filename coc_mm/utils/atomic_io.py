"""Write files whole or not at all, checkpoints of mmengine among them."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from coc_mm.errors import CheckpointError

__all__ = [
    'WholeFileBackend',
    'check_writable',
    'explaining_full_disks',
    'remove_partial_files',
    'use_whole_files',
    'write_whole',
]

_PARTIAL = re.compile(r'^\..+\.\d+\.part$')
_ZIP_MAGIC = b'PK\x03\x04'
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def write_whole(content: bytes, path: str | os.PathLike, sync: bool = True) -> None:
    """Write a file beside its place and move it there, over what may be there.

    Whatever ends the process meanwhile, ``path`` holds either all of the new content or all of
    the old; a part of the new may be left under a hidden name.

    Args:
        content (bytes): All of it.
        path (str | os.PathLike): Of the file; its folder is made.
        sync (bool): Whether to wait until the disk has it, so that a crash of the machine
            leaves one or the other, too. Defaults to True.

    Raises:
        CheckpointError: The file cannot be written. The old one is as it was.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, 'wb') as file:
                file.write(content)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(partial, path)
            if sync:
                _sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f'{path} cannot be written ({error.strerror or error}); what was there before is as '
            'it was. Make room or name another folder with --work-dir, then go on with --resume.'
        ) from error


def _sync_folder(folder: Path) -> None:
    """Have the disk know the new name; some file systems refuse this and need no more."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


class WholeFileBackend(LocalBackend):
    """mmengine's access to local files, which writes them whole or not at all."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write a file.

        Args:
            obj (bytes): Its content. Files of ``torch.save`` are waited for until on disk.
            filepath (str | os.PathLike): Where.

        Raises:
            CheckpointError: The file cannot be written.
        """
        write_whole(obj, filepath, sync=bytes(obj[:4]) == _ZIP_MAGIC)


def use_whole_files() -> None:
    """Let mmengine write local files by :class:`WholeFileBackend`, for the process."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')


def remove_partial_files(folder: str | os.PathLike) -> list[Path]:
    """Remove what killed runs left of files that they were writing.

    Args:
        folder (str | os.PathLike): Where checkpoints are written; it need not exist.

    Returns:
        list[Path]: What was removed.
    """
    folder = Path(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    partial = [folder / name for name in names if _PARTIAL.match(name)]
    for path in partial:
        path.unlink(missing_ok=True)
    return partial


def check_writable(folder: str | os.PathLike) -> None:
    """Refuse a folder that takes no file, before hours are spent on what goes there.

    Args:
        folder (str | os.PathLike): It is made if it does not exist.

    Raises:
        CheckpointError: Nothing can be written there.
    """
    probe = Path(folder) / f'.probe.{os.getpid()}.part'
    try:
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b'x')
        finally:
            if probe.parent.is_dir():
                probe.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f'the folder {folder} cannot be written to ({error.strerror or error}); name another '
            'one with --work-dir.'
        ) from error


@contextmanager
def explaining_full_disks(folder: str | os.PathLike) -> Iterator[None]:
    """Turn a failure to write logs and the like into a sentence.

    Args:
        folder (str | os.PathLike): Of the run, for the message.

    Raises:
        CheckpointError: For a full or read-only disk, a quota or a limit on the size of files.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise CheckpointError(
            f'{error.filename or f"a file in {folder}"} cannot be written ({error.strerror}); the '
            'checkpoints written before are whole. Make room, then go on with --resume.'
        ) from error
