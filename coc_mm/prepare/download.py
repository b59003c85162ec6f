"""Downloads that survive dropped connections and never pass for more than they are."""

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coc_mm.prepare.archives import CHUNK, PrepareError

__all__ = ['download', 'verify']

# Besides these, an answer of 4xx will not get better by asking again.
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_AGENT = {'User-Agent': 'coc_mm', 'Accept-Encoding': 'identity'}


def verify(path: Path, checksum: str | None) -> None:
    """Hold a file against its published checksum.

    Args:
        path (Path): The file.
        checksum (str | None): ``'md5:...'`` or ``'sha1:...'`` in hexadecimal; None checks nothing.

    Raises:
        PrepareError: They differ.
    """
    if checksum is None:
        return
    kind, expected = checksum.split(':')
    with path.open('rb') as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    if found.hexdigest() != expected:
        raise PrepareError(
            f'{path}: {kind} is {found.hexdigest()}, published is {expected}: damaged, or another '
            'edition.\nRemove it and run again; a repacked archive that you trust: --skip-checksum.'
        )


@dataclass
class _Part:
    """What has arrived of a file, and which edition of it that was."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + '.json')

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def edition(self, url: str) -> str | None:
        """Give what ``If-Range`` needs; None if what is there belongs to another URL."""
        try:
            note = json.loads(self.note.read_text())
            return note['edition'] if note['url'] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def start(self, url: str, edition: str | None) -> None:
        self.note.write_text(json.dumps(dict(url=url, edition=edition)))
        self.path.write_bytes(b'')

    def forget(self) -> None:
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _edition(headers) -> str | None:
    etag = headers.get('ETag')
    if etag and not etag.startswith('W/'):  # If-Range takes strong ones only
        return etag
    return headers.get('Last-Modified')


def _refuse_web_page(url: str, headers, start: bytes) -> None:
    looks = start.lstrip()[:200].lower()
    if headers.get_content_type() == 'text/html' or looks.startswith((b'<!doctype', b'<html')):
        raise PrepareError(
            f'{url} answered with a web page instead of the file, probably a login or a notice.\n'
            'Get the file with a browser, put it into a folder and name that with --archives.'
        )


def _check_room(path: Path, missing: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if missing > free:
        raise PrepareError(
            f'{path.name} needs {missing / 1e9:.2f} GB more, {path.parent} has {free / 1e9:.2f} GB '
            'free; make room, or name another disk with --archives.'
        )


def _open(url: str, part: _Part, timeout: float):
    """Ask for what is missing; return the response and where its first byte belongs."""
    offset, edition = part.size, part.edition(url)
    headers = dict(_AGENT)
    if offset and edition:
        headers |= {'Range': f'bytes={offset}-', 'If-Range': edition}
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    if response.status != 206:
        return response, 0
    found = re.match(r'bytes (\d+)-', response.headers.get('Content-Range', ''))
    if found is None or int(found[1]) != offset:
        response.close()
        part.forget()  # a server that counts otherwise; begin again without Range
        raise http.client.HTTPException('the server sent another range than was asked for')
    return response, offset


def _receive(url, part, on_bytes, stop, timeout) -> None:
    """Make one attempt; return when the file is complete.

    Raises:
        OSError, http.client.HTTPException: The connection broke; what arrived is kept.
    """
    response, offset = _open(url, part, timeout)
    with response:
        length = response.headers.get('Content-Length')
        total = offset + int(length) if length is not None else None
        first = response.read1(CHUNK)
        if offset == 0:
            _refuse_web_page(url, response.headers, first)
            part.start(url, _edition(response.headers))
        if total is not None:
            _check_room(part.path, total - offset)
        on_bytes(offset, total)
        done = offset
        with part.path.open('ab') as file:
            chunk = first
            while chunk:
                if stop.is_set():
                    raise PrepareError(f'{url}: stopped; run again to go on.')
                file.write(chunk)
                done += len(chunk)
                on_bytes(done, total)
                chunk = response.read1(CHUNK)
    if total is not None and done < total:  # http.client returns what it has
        raise http.client.IncompleteRead(b'', total - done)


def _explain(error: Exception) -> str:
    reason = getattr(error, 'reason', None)
    return f'{reason or error or type(error).__name__}'


def _refuse_answer(url: str, error: urllib.error.HTTPError) -> None:
    """Say what an answer means that will not get better by asking again."""
    hints = {401: 'it asks for a login', 403: 'it refuses access', 404: 'no such file'}
    raise PrepareError(
        f'{url}: HTTP {error.code}, {hints.get(error.code, error.reason)}.\n'
        'Name a mirror with --url, or a folder that holds the archive with --archives.'
    ) from error


def _fetch(url, part, on_bytes, stop, tries, pause, timeout) -> bool:
    """Attempt until the file is complete; give up after ``tries`` that bring nothing new.

    Returns:
        bool: Whether the file was put together from several attempts.
    """
    failures, furthest, pieced = 0, part.size, part.size > 0
    problem: Exception
    while True:
        try:
            _receive(url, part, on_bytes, stop, timeout)
            return pieced
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing follows what is there
                if error.headers.get('Content-Range') == f'bytes */{part.size}':
                    return pieced
                part.forget()
                furthest = 0
            elif error.code not in _TEMPORARY:
                _refuse_answer(url, error)
            problem = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise PrepareError(
                    f'the disk of {part.path.parent} is full; make room and run again to go on.'
                ) from error
            problem = error
        pieced = True
        # Only bytes that were never here before count as progress, or a server that starts
        # anew each time would be asked for ever.
        failures = failures + 1 if part.size <= furthest else 0
        furthest = max(furthest, part.size)
        if failures >= tries:
            raise PrepareError(
                f'{url}: gave up after {failures} attempts in a row that brought nothing new '
                f'({_explain(problem)}).\nWhat has arrived is kept: run again to go on, or name a '
                'mirror with --url.'
            ) from problem
        if stop.wait(pause * 2 ** min(failures, 5)):
            raise PrepareError(f'{url}: stopped; run again to go on.')


def download(
    url: str,
    path: Path,
    checksum: str | None = None,
    on_bytes: Callable[[int, int | None], None] = lambda done, total: None,
    stop: threading.Event | None = None,
    tries: int = 6,
    pause: float = 0.5,
    timeout: float = 30,
) -> None:
    """Download a file, going on where an earlier attempt or run stopped.

    What arrives lies in ``path + '.part'`` until it is complete and verified. A server that
    supports ranges is asked for the rest of the same edition of the file only (``If-Range``).

    Args:
        url (str): http or https.
        path (Path): Where the file shall lie; its folder exists.
        checksum (str, optional): See :func:`verify`.
        on_bytes (Callable): Told how many bytes are there and how many there will be, if known.
        stop (threading.Event, optional): Ends the download soon when set.
        tries (int): Attempts in a row that bring nothing new before giving up.
        pause (float): Seconds before the second attempt, doubling, at most 32 times that.
        timeout (float): Seconds that the server may be silent.

    Raises:
        PrepareError: The file cannot be had, is a web page, or does not match the checksum (it
            is fetched anew once if it had been put together from several attempts).
    """
    if not url.startswith(('http://', 'https://')):
        raise PrepareError(f'{url}: only http:// and https:// can be downloaded.')
    part = _Part(path.with_name(path.name + '.part'))
    stop = stop or threading.Event()
    again = False
    while True:
        pieced = _fetch(url, part, on_bytes, stop, tries, pause, timeout)
        try:
            verify(part.path, checksum)
        except PrepareError as error:
            part.forget()
            if again or not pieced:
                message = (
                    str(error).replace(str(part.path), url).replace('Remove it and run', 'Run')
                )
                raise PrepareError(message) from error
            again = True
            continue
        os.replace(part.path, path)
        part.note.unlink(missing_ok=True)
        return
