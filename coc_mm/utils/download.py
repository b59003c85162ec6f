"""Resumable downloads with progress and checksums."""

import errno
import hashlib
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from coc_mm.errors import DownloadError

_CHUNK = 1 << 20
# Other answers of 4xx will not get better by asking again.
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_ADVICE = 'Name a mirror with --url, or a folder that holds the file with --archives.'
_HINTS = {401: 'it asks for a login', 403: 'it refuses access', 404: 'no such file'}


def verify_checksum(path: Path, checksum: str | None) -> None:
    """Compare a file with its published checksum, ``'md5:...'``, ``'sha1:...'``, if any."""
    if checksum is None:
        return
    kind, expected = checksum.split(':')
    with path.open('rb') as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    if found.hexdigest() != expected:
        raise DownloadError(
            f'{path}: {kind} is {found.hexdigest()}, published is {expected}: damaged, or another '
            'edition.\nRemove it and run again; a repacked archive that you trust: --skip-checksum.'
        )


def download(
    url: str,
    path: Path,
    checksum: str | None = None,
    on_bytes: Callable[[int, int | None], None] = lambda done, total: None,
    stop: threading.Event | None = None,
    tries: int = 6,
    pause: float = 0.5,
    timeout: float = 30,
    advice: str = _ADVICE,
) -> None:
    """Download a file, going on where an earlier attempt or run stopped.

    What arrives lies in ``path + '.part'`` until it is complete and verified. Of a server that
    supports ranges the rest of the same edition is wanted (``If-Range``); what was put together
    wrongly is fetched anew once.

    Args:
        on_bytes (Callable): Called with the bytes that are there and the total, None if unknown.
        stop (threading.Event, optional): Ends the download soon when set.
        tries (int): Attempts in a row that bring nothing new before giving up.
        pause (float): Seconds before the second attempt, doubling, at most 32 times that.
        timeout (float): Seconds that the server may be silent.
        advice (str): The way out, at the end of messages.
    """
    if not url.startswith(('http://', 'https://')):
        raise DownloadError(f'{url}: only http:// and https:// can be downloaded.')
    file = _PartialFile(url, path, on_bytes, stop or threading.Event(), timeout, advice)
    for last in (False, True):
        resumed = file.fetch(tries, pause)
        try:
            verify_checksum(file.path, checksum)
            break
        except DownloadError as error:
            file.discard()
            if last or not resumed:
                said = str(error).replace(str(file.path), url).replace('Remove it and run', 'Run')
                raise DownloadError(said) from error
    os.replace(file.path, path)
    file.note.unlink(missing_ok=True)


class _PartialFile:
    """What has arrived of a file, and a note of its URL and edition beside it."""

    def __init__(self, url, path, on_bytes, stop, timeout, advice) -> None:
        self.advice = advice
        self.url, self.on_bytes, self.stop, self.timeout = url, on_bytes, stop, timeout
        self.path = path.with_name(path.name + '.part')
        self.note = path.with_name(path.name + '.part.json')

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def discard(self):
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def open(self):
        headers = {'User-Agent': 'coc_mm', 'Accept-Encoding': 'identity'}
        size, note = self.size, {}
        with suppress(OSError, ValueError):
            note = json.loads(self.note.read_text())
        if size and note.get('url') == self.url and note.get('edition'):
            headers |= {'Range': f'bytes={size}-', 'If-Range': note['edition']}
        request = urllib.request.Request(self.url, headers=headers)
        response = urllib.request.urlopen(request, timeout=self.timeout)
        return response, size if response.status == 206 else 0

    def receive(self):
        response, done = self.open()
        with response:
            length = response.headers.get('Content-Length')
            total = None if length is None else done + int(length)
            chunk = response.read1(_CHUNK)
            if done == 0:
                self.start(response.headers, chunk)
            self.on_bytes(done, total)
            with self.path.open('ab') as file:
                while chunk:
                    if self.stop.is_set():
                        raise DownloadError(f'{self.url}: stopped; run again to go on.')
                    file.write(chunk)
                    done += len(chunk)
                    self.on_bytes(done, total)
                    chunk = response.read1(_CHUNK)
        if total is not None and done < total:  # http.client returns what it has
            raise http.client.IncompleteRead(b'', total - done)

    def start(self, headers, chunk: bytes) -> None:
        """Begin an empty file, unless the answer is a web page."""
        start = chunk.lstrip()[:20].lower()
        if headers.get_content_type() == 'text/html' or start.startswith((b'<!doctype', b'<html')):
            raise DownloadError(
                f'{self.url} answered with a web page instead of the file, probably a login or a '
                f'notice.\n{self.advice}'
            )
        etag = headers.get('ETag', 'W/')  # If-Range takes strong tags only
        edition = headers.get('Last-Modified') if etag.startswith('W/') else etag
        self.note.write_text(json.dumps(dict(url=self.url, edition=edition)))
        self.path.write_bytes(b'')

    def fetch(self, tries: int, pause: float) -> bool:
        """Attempt until the file is complete; tell whether it came in several parts."""
        failures, furthest, resumed = 0, self.size, self.size > 0
        problem: Exception
        while True:
            try:
                self.receive()
                return resumed
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # nothing follows what is there
                    if error.headers.get('Content-Range') == f'bytes */{self.size}':
                        return resumed
                    self.discard()
                    furthest = 0
                elif error.code not in _TEMPORARY:
                    raise DownloadError(
                        f'{self.url}: HTTP {error.code}, {_HINTS.get(error.code, error.reason)}.\n'
                        f'{self.advice}'
                    ) from error
                problem = error
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DownloadError(
                        f'the disk of {self.path.parent} is full; make room and run again to go on.'
                    ) from error
                problem = error
            resumed = True
            # Only bytes that were never here before count as progress, or a server that starts
            # anew each time would be asked for ever.
            failures = failures + 1 if self.size <= furthest else 0
            furthest = max(furthest, self.size)
            if failures >= tries:
                reason = getattr(problem, 'reason', None) or problem or type(problem).__name__
                raise DownloadError(
                    f'{self.url}: gave up after {failures} attempts in a row that brought nothing '
                    f'new ({reason}).\nWhat has arrived is kept: run again to go on. {self.advice}'
                ) from problem
            if self.stop.wait(pause * 2 ** min(failures, 5)):
                raise DownloadError(f'{self.url}: stopped; run again to go on.')
