"""Find the latest undamaged checkpoint of a run."""

import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from coc_mm.checkpoints.load import load_checkpoint_safely
from coc_mm.errors import CheckpointError

__all__ = ['find_latest_checkpoint', 'latest_named', 'verify_checkpoint']

_TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth', 'stopped_iter_{}.pth')


def verify_checkpoint(path: str | os.PathLike) -> dict:
    """Load a checkpoint, on the CPU, and verify the checksums of its members.

    torch notices neither a flipped bit nor a block of zeros in the weights.

    Raises:
        CheckpointError: It is cut, damaged or no checkpoint.
    """
    checkpoint = load_checkpoint_safely(path, hold=True)
    path = os.path.expanduser(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            try:
                broken = archive.testzip()
            except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
                broken = str(error)
        if broken is not None:
            raise CheckpointError(
                f'checkpoint {path} is damaged (wrong checksum of {broken}); take an older one.'
            )
    return checkpoint


def _iteration_of(path: Path) -> int:
    """Return the iterations that a checkpoint has trained; verify it."""
    if not path.exists():
        raise CheckpointError(f'last_checkpoint names {path}, which does not exist.')
    checkpoint = verify_checkpoint(path)
    for key in ('meta', 'message_hub', 'optimizer'):
        if key not in checkpoint:
            raise CheckpointError(f'checkpoint {path} has no {key}, only weights.')
    return int(checkpoint['meta'].get('iter', 0))


def latest_named(work_dir: str | os.PathLike) -> Path | None:
    """Read which checkpoint a run wrote last, also where the folder was moved.

    Returns:
        Path | None: From the file ``last_checkpoint``; it may not exist. None without that file,
        or if it is empty.
    """
    try:
        named = Path(work_dir, 'last_checkpoint').read_text(errors='replace').strip('\0 \n')
    except OSError:
        return None
    if not named:
        return None
    moved = Path(work_dir, os.path.basename(named))
    return moved if not os.path.exists(named) and moved.exists() else Path(named)


def _written(folders: Iterable[Path], template: str | None) -> list[Path]:
    """List a run's checkpoints, newest first."""
    templates = [*_TEMPLATES, *([template] if template else [])]
    names = '|'.join(re.escape(name).replace(r'\{\}', r'\d+') for name in templates)
    found = [
        path
        for folder in dict.fromkeys(folders)
        if folder.is_dir()
        for path in folder.iterdir()
        if re.fullmatch(names, path.name) and path.is_file()
    ]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def find_latest_checkpoint(
    work_dir: str, out_dir: str | None = None, template: str | None = None
) -> tuple[str | None, list[str]]:
    """Find the checkpoint that a run should be resumed from.

    That is the one named by ``last_checkpoint``; one written after it, if the run was killed
    before it could be named; or the next older one, where these are damaged.

    Args:
        work_dir (str): Of the run.
        out_dir (str, optional): Where checkpoints go, if not there.
        template (str, optional): Their names, with ``{}`` for a number, if not mmengine's.

    Returns:
        tuple[str | None, list[str]]: The path, None if there is no checkpoint at all, and a
        sentence for each newer one that cannot be used.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    named = latest_named(work_dir)
    folders = [Path(folder) for folder in (work_dir, out_dir) if folder]
    found = _written(folders, template)
    since = 0
    if named is not None:
        since = Path(work_dir, 'last_checkpoint').stat().st_mtime_ns
        found = [path for path in found if not _same(path, named)]
    later = [path for path in found if named is not None and path.stat().st_mtime_ns > since]
    passed: list[str] = []
    best: tuple[int, Path] | None = None
    for path in [*later, *([named] if named is not None else [])]:
        try:
            iteration = _iteration_of(path)
        except CheckpointError as error:
            passed.append(str(error))
            continue
        if best is None or iteration > best[0]:
            best = iteration, path
    for path in found[len(later) :] if best is None else []:
        try:
            best = _iteration_of(path), path
            break
        except CheckpointError as error:
            passed.append(str(error))
    if best is None and passed:
        raise CheckpointError(
            f'{" ".join(passed)}\nNo checkpoint in {work_dir} is whole; name another with --resume '
            f'PATH, or remove {Path(work_dir, "last_checkpoint")} and these files to start anew.'
        )
    return (None if best is None else str(best[1])), passed


def _same(path: Path, other: Path) -> bool:
    return os.path.abspath(path) == os.path.abspath(other)
