"""Find the latest undamaged checkpoint of a run."""

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from coc_mm.checkpoints.load import load_checkpoint_safely
from coc_mm.errors import CheckpointError

_TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth', 'stopped_iter_{}.pth')


def verify_checkpoint(path: str | os.PathLike) -> dict:
    """Load a checkpoint, and verify the checksums of its members, which torch does not."""
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
    """Read which checkpoint a run wrote last, also where the folder was moved; it may be gone."""
    try:
        named = Path(work_dir, 'last_checkpoint').read_text(errors='replace').strip('\0 \n')
    except OSError:
        return None
    if not named:
        return None
    moved = Path(work_dir, os.path.basename(named))
    return moved if not os.path.exists(named) and moved.exists() else Path(named)


def find_latest_checkpoint(
    work_dir: str, out_dir: str | None = None, template: str | None = None
) -> tuple[str | None, list[str]]:
    """Find the checkpoint that a run should be resumed from.

    That is the one named by ``last_checkpoint``; one written after it, if the run was killed
    before it could be named; or the next older one, where these are damaged. Returns its path,
    None without any, and a sentence for each newer one that cannot be used. ``template`` is a
    name with ``{}`` for a number, besides mmengine's.
    """
    templates = [*_TEMPLATES, template] if template else _TEMPLATES
    names = '|'.join(re.escape(name).replace(r'\{\}', r'\d+') for name in templates)
    folders = {Path(folder) for folder in (work_dir, out_dir) if folder and os.path.isdir(folder)}
    found = [path for folder in folders for path in folder.iterdir()]
    found = [path for path in found if re.fullmatch(names, path.name) and path.is_file()]
    found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    named, first = latest_named(work_dir), []
    if named is not None:
        since = Path(work_dir, 'last_checkpoint').stat().st_mtime_ns
        found = [path for path in found if os.path.abspath(path) != os.path.abspath(named)]
        first = [*(path for path in found if path.stat().st_mtime_ns > since), named]
    passed: list[str] = []

    def usable(paths: list[Path]) -> Iterator[tuple[int, Path]]:
        for path in paths:
            try:
                yield _iteration_of(path), path
            except CheckpointError as error:
                passed.append(str(error))

    best = max(usable(first), key=lambda each: each[0], default=None)
    best = best or next(usable(found[max(len(first) - 1, 0) :]), None)
    if best is None and passed:
        raise CheckpointError(
            f'{" ".join(passed)}\nNo checkpoint in {work_dir} is whole; name another with --resume '
            f'PATH, or remove {Path(work_dir, "last_checkpoint")} and these files to start anew.'
        )
    return (None if best is None else str(best[1])), passed
