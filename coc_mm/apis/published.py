"""The published weights of a model by name: fetched, converted and put where configs look."""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from coc_mm.apis.convert import convert_checkpoint
from coc_mm.apis.model_zoo import ModelEntry, find_entry
from coc_mm.checkpoints.load import load_from_local_safely
from coc_mm.checkpoints.safe_pickle import read_file
from coc_mm.checkpoints.save import save_checkpoint
from coc_mm.errors import CheckpointError, DownloadError, UserError, print_rank0
from coc_mm.utils.atomic_io import atomic_write
from coc_mm.utils.download import download

#: Names a mirror of the published files: ``http(s)://...`` or a folder.
MIRROR_VARIABLE = 'COC_MM_MIRROR'
_CONVERT = 'python tools/model_converters/official_to_coc_mm.py'


def load_by_name(address: str, map_location: Any = None) -> dict[str, Any]:
    """Load ``coc_mm://NAME`` or ``coc_mm://NAME/SOURCE``, fetched where it is not there yet."""
    name, _, source = address.partition('://')[2].partition('/')
    entry = find_entry(name)
    for turn in (is_main_process(), True):  # one process fetches, the others use its file
        path = turn and ((not source and entry.weights) or fetch_weights(entry, source or None))
        barrier()
    return load_from_local_safely(str(path), map_location)


def fetch_weights(
    entry: ModelEntry, source: str | None = None, folder: str | os.PathLike = 'checkpoints'
) -> Path:
    """Fetch and convert published weights, or give the file of an earlier call.

    Args:
        entry: The model.
        source: One of ``entry.sources``; the first if None.
        folder: Gets ``NAME.pth`` (``NAME-SOURCE.pth`` where that has other weights), and beside
            it the SHA-256 of the published and of the written file.

    Raises:
        UserError: The model has no such weights.
        DownloadError: They cannot be had; the message says how else.
        CheckpointError: What came are other weights.
    """
    known = entry.sources
    if not known:
        raise UserError(f'no weights of {entry.name} are published; train it with its config.')
    source = source or next(iter(known))
    if source not in known:
        raise UserError(f'{entry.name} has no source {source!r}; there is {", ".join(known)}.')
    folder = Path(folder)
    target = folder / f'{entry.name}.pth'
    if target.exists() and _source_of(target) != source:
        target = folder / f'{entry.name}-{source}.pth'
    if target.exists():
        if _source_of(target) != source:
            raise UserError(f'{target} are other weights than those of {source}; move them away.')
        return target
    facts = known[source]
    file = None
    try:
        file = _fetch(facts, target)
        published = _sha256(file)
        if facts.get('SHA256') not in (None, published):
            raise DownloadError(
                f'{facts["Address"]}: sha256 is {published}, published is {facts["SHA256"]}: '
                'damaged, or another file. Nothing was written; run again.'
            )
        converted = _convert(entry, facts, file)
        converted['meta']['coc_mm'] |= dict(source=source, source_sha256=published)
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(converted, target)
    finally:
        if file is not None and file.parent == folder:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # made here and empty
            folder.rmdir()
    sums = {facts['File']: published, target.name: _sha256(target)}
    with atomic_write(target.with_name(target.name + '.sha256')) as partial:
        partial.write_text(''.join(f'{value}  {name}\n' for name, value in sums.items()))
    for name, value in sums.items():
        print_rank0(f'sha256 {value}  {name}')
    return target


def _source_of(path: Path) -> str | None:
    return ((read_file(path).get('meta') or {}).get('coc_mm') or {}).get('source')


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _convert(entry: ModelEntry, facts: dict, file: Path) -> dict[str, Any]:
    """Convert a published file as the model that it is listed under."""
    arch = proposals = None
    if entry.task in ('classification', 'detection', 'segmentation'):
        parts = re.match(r'(?:.+_)?coc-(.+?)(?:-c(\d+))?_', entry.name)
        assert parts is not None
        arch = parts[1].replace('-', '_')
        arch = {'s': 'small', 'm': 'medium'}.get(arch, arch)
        proposals = round(int(parts[2]) ** 0.5) if parts[2] else None
    denominator = facts.get('Denominator')
    try:
        converted = convert_checkpoint(str(file), None, arch, denominator, proposals)
        layout = converted['meta']['coc_mm']['layout']
        if layout != facts['Layout']:
            raise UserError(f'it has the {layout} layout, not {facts["Layout"]}.')
    except UserError as error:
        raise CheckpointError(
            f'{facts["Address"]} gave another file than was published; nothing was written: {error}'
        ) from None
    return converted


def _fetch(facts: dict, target: Path) -> Path:
    """Give the published file: one in a mirror's folder, or downloaded beside the target."""
    address, name, mirror = facts['Address'], facts['File'], os.environ.get(MIRROR_VARIABLE)
    advice = (
        f'Get {address} with a browser and run\n{_CONVERT} FILE {target}\n'
        f'or put it as {name} into a folder and set {MIRROR_VARIABLE}=FOLDER.'
    )
    path = target.with_name(name)
    if mirror and not mirror.startswith(('http://', 'https://')):
        path = Path(mirror).expanduser() / name
        if not path.is_file():
            raise DownloadError(f'{MIRROR_VARIABLE}={mirror} has no file {name}.\n{advice}')
        return path
    target.parent.mkdir(parents=True, exist_ok=True)
    print_rank0(f'fetching {f"{mirror}/{name}" if mirror else address}')
    if mirror or facts['Kind'] == 'https':
        url = f'{mirror.rstrip("/")}/{name}' if mirror else address
        columns = TextColumn('{task.description}'), BarColumn(), DownloadColumn()
        with Progress(*columns, TransferSpeedColumn()) as progress:
            task = progress.add_task(name, total=None)
            download(
                url,
                path,
                on_bytes=lambda done, total: progress.update(task, completed=done, total=total),
                tries=4,
                advice=advice,
            )
    else:
        try:
            _fetch_from_drive(facts, path)
        except Exception as error:  # of gdown, its connection or the disk
            reason = ' '.join((getattr(error, 'strerror', None) or str(error)).split())[:300]
            if isinstance(error, ModuleNotFoundError) and error.name == 'gdown':
                reason = 'its files are fetched by gdown: pip install gdown'
            raise DownloadError(f'Google Drive: {reason}\nThen run again, or: {advice}') from error
    return path


def _fetch_from_drive(facts: dict, path: Path) -> None:
    """Download a file of Google Drive, or the checkpoint of a folder."""
    import gdown

    address = facts['Address']
    file_id = re.split('[/=]', address)[-1]
    if facts['Kind'] == 'drive-folder':
        listing: Any = gdown.download_folder(
            id=file_id, output=str(path.parent), quiet=True, skip_download=True
        )
        file_id = _pick([(item.path, item.id) for item in listing or ()], address)
    partial = path.with_name(path.name + '.part')
    if gdown.download(id=file_id, output=str(partial), quiet=False, resume=True) is None:
        raise DownloadError(f'{address}: Google Drive gave no file.')
    os.replace(partial, path)


def _pick(listing: list[tuple[str, str]], address: str) -> str:
    """Choose the checkpoint of a folder: the best, else the last."""

    def rank(name: str) -> tuple:
        stem = os.path.basename(name).lower()
        numbers = [int(n) for n in re.findall(r'\d+', stem)]
        return 'best' in stem, 'latest' in stem or 'last' in stem, numbers

    found = [x for x in listing if re.search(r'\.(pth(\.tar)?|pt|safetensors)$', x[0].lower())]
    if not found:
        names = ', '.join(name for name, _ in listing) or 'nothing'
        raise DownloadError(f'{address} holds no checkpoint (it has {names}).')
    return max(found, key=lambda item: rank(item[0]))[1]
