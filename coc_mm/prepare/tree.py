"""What a tree lacks, and doing that much."""

import gzip
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from coc_mm.errors import print_rank0
from coc_mm.prepare.archives import Entry, PrepareError, is_file_of, unpack
from coc_mm.prepare.download import download, verify
from coc_mm.prepare.recipes import Archive, Part, Recipe

__all__ = ['find_lacking', 'prepare']

_NOTES = '.prepared'  # listings of what was unpacked, below the root
_LOCK = '.prepare.lock'  # held while a tree is worked on


def _listing(root: Path, part: Part) -> Path:
    return root / _NOTES / f'{part.name}.txt.gz'


def _write_listing(root: Path, part: Part, files: dict[str, int]) -> None:
    path = _listing(root, part)
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix('.new')
    with gzip.open(fresh, 'wt', encoding='utf-8') as file:
        file.writelines(f'{size}\t{name}\n' for name, size in sorted(files.items()))
    os.replace(fresh, path)


def _read_listing(root: Path, part: Part) -> dict[str, int] | None:
    try:
        with gzip.open(_listing(root, part), 'rt', encoding='utf-8') as file:
            pairs = [line.rstrip('\n').split('\t', 1) for line in file]
            return {name: int(size) for size, name in pairs}
    except (OSError, EOFError, ValueError):  # not there, or damaged: count instead
        return None


def _count(folder: Path, suffix: str) -> int:
    return sum(
        name.endswith(suffix) for _, _, names in os.walk(folder, followlinks=True) for name in names
    )


def _lacking_of_part(root: Path, part: Part) -> list[str]:
    listing = _read_listing(root, part)
    if listing is not None:
        lost = [name for name, size in listing.items() if not is_file_of(root / name, size)]
        if not lost:
            return []
        return [f'{len(lost)} of {len(listing)} files missing or of another size, e.g. {lost[0]}']
    lacking = []
    for folder, (suffix, expected) in part.counts.items():
        found = _count(root / folder, suffix)
        if found < expected:
            lacking.append(f'{folder} holds {found} of {expected} {suffix} files')
    lacking += [f'{name} is missing' for name in part.required if not (root / name).is_file()]
    return lacking


def _select(recipe: Recipe, only: Sequence[str] | None) -> list[Part]:
    known = [part.name for part in recipe.parts]
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise PrepareError(f'--only {unknown[0]}: {recipe.name} has the parts {", ".join(known)}.')
    return [part for part in recipe.parts if not only or part.name in only]


def find_lacking(
    recipe: Recipe, root: Path, only: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """Find what a tree lacks.

    A tree that :func:`prepare` made is held file by file against what it unpacked, by name
    and size; one that came otherwise is counted.

    Args:
        recipe (Recipe): What the tree should hold.
        root (Path): Where it lies.
        only (Sequence[str], optional): Names of parts; all if None.

    Returns:
        dict[str, list[str]]: Part -> what it lacks, in sentences; complete parts are left out.

    Raises:
        PrepareError: ``only`` names no part.
    """
    lacking = {part.name: _lacking_of_part(root, part) for part in _select(recipe, only)}
    return {name: lines for name, lines in lacking.items() if lines}


def _used(folder: Path) -> int:
    return sum(
        os.lstat(os.path.join(base, name)).st_size
        for base, _, names in os.walk(folder)
        for name in names
    )


def _existing(path: Path) -> Path:
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


def _check_room(root: Path, parts: list[Part], folder: Path, missing: list[Archive]) -> None:
    """Refuse to start what the disks cannot hold, from the sizes that are known beforehand."""
    needs: dict[Path, list[int]] = {}
    for part in parts:
        have = sum(_used(root / name) for name in part.counts)
        needs.setdefault(_existing(root), []).append(max(part.size - have, 0))
    for archive in missing:
        partial = folder / f'{archive.name}.part'
        have = partial.stat().st_size if partial.exists() else 0
        needs.setdefault(_existing(folder), []).append(max(archive.size - have, 0))
    disks: dict[int, list[Any]] = {}
    for place, sizes in needs.items():
        disk = disks.setdefault(place.stat().st_dev, [place, 0])
        disk[1] += sum(sizes)
    for place, total in disks.values():
        free = shutil.disk_usage(place).free
        if total > free:
            raise PrepareError(
                f'{place}: about {total / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; '
                'make room, or name other disks with --root and --archives.'
            )


def _url(archive: Archive, mirror: str | None) -> str | None:
    return f'{mirror.rstrip("/")}/{archive.name}' if mirror else archive.url


def _find_archives(recipe, parts, folder, mirror) -> tuple[list[Archive], list[Archive]]:
    """Sort the archives that parts need into those that are there and those to download."""
    wanted = {name for part in parts for name in part.archives}
    archives = [archive for archive in recipe.archives if archive.name in wanted]
    present = [archive for archive in archives if (folder / archive.name).is_file()]
    absent = [archive for archive in archives if archive not in present]
    lost = [archive.name for archive in absent if _url(archive, mirror) is None]
    if lost:
        raise PrepareError(
            f'{", ".join(lost)} not in {folder}: {recipe.name} is not for unregistered download.\n'
            f'To get it, {recipe.where}; put it there or name its folder with --archives (a mirror '
            'of yours: --url; one part only: --only).'
        )
    return present, absent


def _download_all(absent, folder, mirror, jobs, skip_checksum, progress) -> None:
    _make_folder(folder)
    stop = threading.Event()

    def fetch(archive):
        task = progress.add_task(f'download {archive.name}', total=None)
        download(
            _url(archive, mirror) or '',  # none is without
            folder / archive.name,
            None if skip_checksum else archive.checksum,
            on_bytes=lambda done, total: progress.update(task, completed=done, total=total),
            stop=stop,
        )

    with ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(fetch, archive) for archive in absent]
        try:
            # Others go on after one fails: what they bring will not have to be fetched again.
            failures = [future.exception() for future in pending]
        except BaseException:  # an interrupt: do not wait for gigabytes
            stop.set()
            for future in pending:
                future.cancel()
            raise
    for failure in failures:
        if failure is not None:
            raise failure


def _complete(entries: Iterable[Entry], part: Part) -> Iterator[Entry]:
    """Pass entries on; raise at their end, before the last folder appears, if some lack."""
    found = dict.fromkeys(part.counts, 0)
    names = set()
    for entry in entries:
        for folder, (suffix, _) in part.counts.items():
            found[folder] += entry.name.startswith(f'{folder}/') and entry.name.endswith(suffix)
        names.update({entry.name} & set(part.required))
        yield entry
    lacking = [
        f'{found[folder]} of {expected} {suffix} files of {folder}'
        for folder, (suffix, expected) in part.counts.items()
        if found[folder] < expected
    ]
    lacking += [f'no {name}' for name in part.required if name not in names]
    if lacking:
        raise PrepareError(
            f'{", ".join(part.archives)} held {lacking[0]}: truncated, or another edition.\n'
            'Remove the archive and fetch it again.'
        )


def _unpack_part(part, root, folder, progress) -> None:
    task = progress.add_task(f'unpack {part.name}', total=part.size)
    paths = {name: folder / name for name in part.archives}
    entries = _complete(part.read(paths, part.limits), part)
    files = unpack(
        entries, root, part.unit_depth, on_bytes=lambda count: progress.update(task, advance=count)
    )
    _write_listing(root, part, files)
    progress.update(task, total=sum(files.values()), completed=sum(files.values()))


def _fetch_and_unpack(
    parts, present, absent, root, folder, mirror, jobs, skip_checksum, progress, say
) -> None:
    for archive in [] if skip_checksum else present:
        print_rank0(f'checking {folder / archive.name}')
        verify(folder / archive.name, archive.checksum)
    if absent:
        _download_all(absent, folder, mirror, jobs, skip_checksum, progress)
    for archive in [*present, *absent]:
        if skip_checksum or archive.checksum is None:
            print_rank0(f'{archive.name}: no checksum; structure, sizes and, in a zip, CRCs count')
    for part in parts:
        _unpack_part(part, root, folder, progress)


def _progress() -> Progress:
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file is in the way, or the folder is not ours to write
        raise PrepareError(
            f'{path} cannot be made ({error.strerror}); name another folder with --root or '
            '--archives.'
        ) from error


@contextmanager
def _leaving_no_empty_folders(*folders: Path) -> Iterator[None]:
    """Take back the folders made for what was not to be had."""
    new = [path for folder in folders for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except PrepareError:
        for path in sorted(set(new), key=lambda path: len(path.parts), reverse=True):
            lock = path / _LOCK
            if path.is_dir() and not any(child != lock for child in path.iterdir()):
                lock.unlink(missing_ok=True)
                path.rmdir()
        raise


def prepare(
    recipe: Recipe,
    root: Path,
    folder: Path | None = None,
    mirror: str | None = None,
    only: Sequence[str] | None = None,
    jobs: int = 3,
    skip_checksum: bool = False,
    delete_downloads: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Make a tree complete; do nothing that is done already.

    Args:
        recipe (Recipe): What the tree should hold.
        root (Path): Where it lies or shall lie.
        folder (Path, optional): Holds archives, and gets those that are downloaded.
            ``root/archives`` if None.
        mirror (str, optional): URL of a folder with the archives, instead of the publisher's.
        only (Sequence[str], optional): Names of parts; all if None.
        jobs (int): Files downloaded at once.
        skip_checksum (bool): Trust archives that are not the published ones bit by bit.
        delete_downloads (bool): Remove what was downloaded once it is unpacked.
        say (Callable[[str], None]): Takes remarks.

    Raises:
        PrepareError: An archive is missing, cannot be had, is damaged or not trusted, or the
            disk is too small. Complete parts and partial downloads stay.
    """
    lacking = find_lacking(recipe, root, only)
    if not lacking:
        print_rank0(f'{root} is complete.')
        return
    folder = folder or root / 'archives'
    parts = [part for part in recipe.parts if part.name in lacking]
    present, absent = _find_archives(recipe, parts, folder, mirror)
    _check_room(root, parts, folder, absent)
    try:
        with _leaving_no_empty_folders(root, folder):
            _make_folder(root)
            with FileLock(root / _LOCK, timeout=0), _progress() as progress:
                _fetch_and_unpack(
                    parts, present, absent, root, folder, mirror, jobs, skip_checksum, progress, say
                )
    except Timeout as error:
        raise PrepareError(f'{root}: another process is preparing it; wait for that.') from error
    if delete_downloads:
        for archive in absent:
            (folder / archive.name).unlink()
    print_rank0(f'{root} is complete.')
