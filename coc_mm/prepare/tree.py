"""Find what a data set's tree lacks, and fetch and unpack that much."""

import gzip
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from filelock import FileLock, Timeout
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from coc_mm.errors import PrepareError
from coc_mm.prepare.archives import Entry, has_size, unpack
from coc_mm.prepare.recipes import Archive, Part, Recipe
from coc_mm.utils.atomic_io import atomic_write
from coc_mm.utils.download import download, verify_checksum

_LISTINGS = '.prepared'  # name and size of every unpacked file, a list per part
_LOCK = '.prepare.lock'


def _listing_path(root: Path, part: Part) -> Path:
    return root / _LISTINGS / f'{part.name}.txt.gz'


def _read_listing(root: Path, part: Part) -> dict[str, int] | None:
    try:
        with gzip.open(_listing_path(root, part), 'rt', encoding='utf-8') as file:
            pairs = [line.rstrip('\n').split('\t', 1) for line in file]
            return {name: int(size) for size, name in pairs}
    except (OSError, EOFError, ValueError):  # not there, or damaged: count instead
        return None


def _lacking_of_part(root: Path, part: Part) -> list[str]:
    listing = _read_listing(root, part)
    if listing is not None:
        lost = [name for name, size in listing.items() if not has_size(root / name, size)]
        if not lost:
            return []
        return [f'{len(lost)} of {len(listing)} files missing or of another size, e.g. {lost[0]}']
    lacking = []
    for folder, (suffix, expected) in part.counts.items():
        walk = os.walk(root / folder, followlinks=True)
        found = sum(name.endswith(suffix) for _, _, names in walk for name in names)
        if found < expected:
            lacking.append(f'{folder} holds {found} of {expected} {suffix} files')
    return lacking + [f'{name} is missing' for name in part.required if not (root / name).is_file()]


def find_lacking(
    recipe: Recipe, root: Path, only: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """Find what a tree lacks: part -> sentences; complete parts are left out.

    A tree that :func:`prepare` made is compared file by file with what was unpacked, by name and
    size; in any other one files are counted.
    """
    known = [part.name for part in recipe.parts]
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise PrepareError(f'--only {unknown[0]}: {recipe.name} has the parts {", ".join(known)}.')
    lacking = {p.name: _lacking_of_part(root, p) for p in recipe.parts if p.name in (only or known)}
    return {name: lines for name, lines in lacking.items() if lines}


def _check_room(root: Path, parts: list[Part], folder: Path, missing: list[Archive]) -> None:
    """Refuse to start what the disks cannot hold, from the sizes that are known beforehand."""
    needs = [(root, part.size, [root / name for name in part.counts]) for part in parts]
    needs += [(folder, a.size, [folder / f'{a.name}.part']) for a in missing]
    totals: dict[int, int] = {}
    for place, size, present in needs:
        while not place.exists():
            place = place.absolute().parent
        files = [p for path in present for p in (path, *path.rglob('*')) if p.is_file()]
        device = place.stat().st_dev
        totals[device] = totals.get(device, 0) + max(size - sum(p.stat().st_size for p in files), 0)
        free = shutil.disk_usage(place).free
        if totals[device] > free:
            raise PrepareError(
                f'{place}: at least {totals[device] / 1e9:.1f} GB are needed and {free / 1e9:.1f} '
                'GB are free; make room, or name other disks with --root and --archives.'
            )


def _find_archives(
    recipe: Recipe, parts: list[Part], folder: Path, mirror: str | None
) -> tuple[list[Archive], dict[Archive, str]]:
    """The archives that parts need: those that are there, and those to download with their URL."""
    archives = [archive for part in parts for archive in part.archives]
    present = [archive for archive in archives if (folder / archive.name).is_file()]
    absent = [archive for archive in archives if archive not in present]
    urls = {a: f'{mirror.rstrip("/")}/{a.name}' if mirror else a.url or '' for a in absent}
    lost = [archive.name for archive, url in urls.items() if not url]
    if lost:
        raise PrepareError(
            f'{", ".join(lost)} not in {folder}: {recipe.name} is not for unregistered download.\n'
            f'To get it, {recipe.where}; put it there or name its folder with --archives (a mirror '
            'of yours: --url; one part only: --only).'
        )
    return present, urls


def _download_all(
    urls: dict[Archive, str], folder: Path, jobs: int, skip_checksum: bool, progress: Progress
) -> None:
    stop = threading.Event()

    def fetch(archive: Archive) -> None:
        task = progress.add_task(f'download {archive.name}', total=None)
        download(
            urls[archive],
            folder / archive.name,
            None if skip_checksum else archive.checksum,
            on_bytes=lambda done, total: progress.update(task, completed=done, total=total),
            stop=stop,
        )

    with ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(fetch, archive) for archive in urls]
        try:
            wait(pending)  # others go on after one fails: what they bring need not be fetched again
        except BaseException:  # an interrupt: do not wait for gigabytes
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    for future in pending:
        future.result()


def _check_complete(entries: Iterable[Entry], part: Part) -> Iterator[Entry]:
    """Pass entries on; raise at their end, before the last folder appears, if some lack."""
    names = []
    for entry in entries:
        names.append(entry.name)
        yield entry
    lacking = [f'no {name}' for name in part.required if name not in names]
    for folder, (suffix, expected) in part.counts.items():
        found = sum(name.startswith(f'{folder}/') and name.endswith(suffix) for name in names)
        if found < expected:
            lacking.append(f'{found} of {expected} {suffix} files of {folder}')
    if lacking:
        raise PrepareError(
            f'{part.archives[0].name} held {lacking[0]}: truncated, or another edition.\n'
            'Remove the archive and fetch it again.'
        )


def _unpack_part(part: Part, root: Path, folder: Path, progress: Progress) -> None:
    task = progress.add_task(f'unpack {part.name}', total=part.size)
    files = unpack(
        _check_complete(part.entries(folder), part),
        root,
        folder / part.archives[0].name,
        part.unit_depth,
        on_bytes=lambda count: progress.update(task, advance=count),
    )
    listing = _listing_path(root, part)
    with atomic_write(listing) as fresh, gzip.open(fresh, 'wt', encoding='utf-8') as file:
        file.writelines(f'{size}\t{name}\n' for name, size in sorted(files.items()))
    progress.update(task, total=sum(files.values()), completed=sum(files.values()))


def prepare(
    recipe: Recipe,
    root: Path,
    folder: Path | None = None,
    mirror: str | None = None,
    only: Sequence[str] | None = None,
    jobs: int = 3,
    skip_checksum: bool = False,
    delete_downloads: bool = False,
) -> None:
    """Make a tree complete; do nothing that is done already.

    Args:
        folder (Path, optional): Holds archives, and gets those that are downloaded; default:
            ``root/archives``.
        mirror (str, optional): URL of a folder with the archives, instead of the publisher's.
        only (Sequence[str], optional): Names of parts; all by default.
        jobs (int): Files downloaded at once.
        skip_checksum (bool): Trust archives that are not the published ones bit by bit.
        delete_downloads (bool): Remove what was downloaded once it is unpacked.

    Raises PrepareError or DownloadError; complete parts and partial downloads stay.
    """
    lacking = find_lacking(recipe, root, only)
    if not lacking:
        return
    folder = folder or root / 'archives'
    parts = [part for part in recipe.parts if part.name in lacking]
    present, urls = _find_archives(recipe, parts, folder, mirror)
    _check_room(root, parts, folder, list(urls))
    for path in (root, folder):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # a file is in the way, or the folder is not ours to write
            raise PrepareError(
                f'{path} cannot be made ({error.strerror}); name another folder with --root or '
                '--archives.'
            ) from error
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    try:
        with FileLock(root / _LOCK, timeout=0), Progress(*columns) as progress:
            for archive in [] if skip_checksum else present:
                progress.console.print(f'checking {folder / archive.name}')
                verify_checksum(folder / archive.name, archive.checksum)
            _download_all(urls, folder, jobs, skip_checksum, progress)
            for part in parts:
                _unpack_part(part, root, folder, progress)
    except Timeout as error:
        raise PrepareError(f'{root}: another process is preparing it; wait for that.') from error
    for archive in urls if delete_downloads else ():
        (folder / archive.name).unlink()
