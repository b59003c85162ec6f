"""Requests that a server should refuse, and what each must be told."""

import asyncio
import html
import io
import json
import re
import struct
import urllib.parse
import zipfile
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from load_client import Visitor, coded
from PIL import Image

__all__ = ['Bait', 'bad_requests']

_API = '/gradio_api'
_META = {'_type': 'gradio.FileData'}
_LEAKS = ('Traceback', 'File "', 'root:x:', 'site-packages')


@dataclass
class Bait:
    """What nobody may reach.

    Attributes:
        secret (Path): A file outside of the folder of uploads.
        link (Path): A symbolic link to it, inside.
        content (str): What is in it.
        address (str): Of a server on this machine, which the demo must not call.
        megabytes (float): Size of a file that is taken.
    """

    secret: Path
    link: Path
    content: str
    address: str
    megabytes: float


def _said(answer: httpx.Response, bait: Bait) -> str:
    """Return what is wrong with a refusal."""
    text = answer.text
    if any(leak in text for leak in (*_LEAKS, bait.content)):
        return f'tells too much: {text[:200]}'
    if not 400 <= answer.status_code < 500:
        return f'status {answer.status_code}: {text[:100]}'
    try:
        message = answer.json()['detail']
    except (ValueError, KeyError, TypeError):
        return f'no message: {text[:100]}'
    if not isinstance(message, str) or not 10 < len(message) < 300 or '\n' in message:
        return f'no clear message: {text[:200]}'
    return ''


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))


def _png(width: int, height: int, depth: int, data: bytes) -> bytes:
    header = struct.pack('>IIBBBBB', width, height, depth, 0, 0, 0, 0)
    parts = (_chunk(b'IHDR', header), _chunk(b'IDAT', data), _chunk(b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def _files() -> dict[str, tuple[bytes, str]]:
    """Files that are no usable image, each with what is said of it."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 90, 3), np.uint8))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('a.png', b'x' * 1000)
    # A real bomb: 20 kB that become 400 million pixels.
    rows = zlib.compressobj(9)
    packed = b''.join(rows.compress(bytes(2501)) for _ in range(20000)) + rows.flush()
    return {
        'not an image': (b'Not an image at all.', 'not an image'),
        'empty file': (b'', 'is empty'),
        'SVG with a script': (b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', 'not an'),
        'archive': (archive.getvalue(), 'not an image'),
        'truncated PNG': (coded(noise, 'PNG')[:5000], 'damaged'),
        'truncated JPEG': (coded(noise, 'JPEG')[:1500], 'damaged'),
        'bomb': (_png(20000, 20000, 1, packed), 'pixels'),
        'header that lies': (_png(60000, 60000, 8, b''), 'pixels'),
        '1 x 1 pixel': (coded(Image.new('RGB', (1, 1)), 'PNG'), 'the least'),
        '20000 x 10 pixels': (coded(Image.new('RGB', (20000, 10)), 'PNG'), 'strip'),
    }


def _file_case(content: bytes, expected: str):
    async def run(visitor: Visitor, bait: Bait) -> str:
        message = html.unescape(re.sub('<[^>]*>', '', (await visitor.show(content))[3]))
        right = expected in message and len(message) < 300
        return '' if right and not any(x in message for x in _LEAKS) else f'said: {message!r}'

    return run


def _post_case(path: str, **options):
    async def run(visitor: Visitor, bait: Bait) -> str:
        return _said(await visitor.post(path, **options), bait)

    return run


def _join_case(change: Callable):
    """A request to the queue: the right one, changed."""

    async def run(visitor: Visitor, bait: Bait) -> str:
        page = visitor.page
        body = dict(session_hash=visitor.session, fn_index=page.refresh, data=page.wishes())
        change(body, page)
        return _said(await visitor.post('queue/join', content=json.dumps(body).encode()), bait)

    return run


def _wish(**others):
    return _join_case(lambda body, page: body.update(data=page.wishes(**others)))


def _set(**others):
    return _join_case(lambda body, page: body.update(others))


def _without(name: str):
    return _join_case(lambda body, page: body.pop(name))


def _reference_case(path: Callable, **others):
    """An image that is said to be some other file, or an address."""

    async def run(visitor: Visitor, bait: Bait) -> str:
        file = dict(path=path(bait), meta=_META) | others
        return _said(await visitor.join(visitor.page.upload, [file]), bait)

    return run


def _get_case(path: Callable):
    async def run(visitor: Visitor, bait: Bait) -> str:
        asked = path(bait)
        answer = await visitor.client.get(httpx.URL(visitor.page.url.rstrip('/') + asked))
        return _said(answer, bait)

    return run


async def _too_large(visitor: Visitor, bait: Bait) -> str:
    answer = await visitor.upload(bytes(round(bait.megabytes * 1e6) + 100_000))
    return _said(answer, bait) if answer.status_code == 413 else f'status {answer.status_code}'


async def _too_large_in_parts(visitor: Visitor, bait: Bait) -> str:
    """No length is told, so the server has to count."""

    async def parts():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(round(bait.megabytes * 8) + 2):
            yield bytes(125_000)
        yield b'\r\n--x--\r\n'

    kind = {'Content-Type': 'multipart/form-data; boundary=x'}
    try:
        answer = await visitor.post('upload', content=parts, headers=kind)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return ''  # the server answered and hung up while parts were still on their way
    return _said(answer, bait) if answer.status_code == 413 else f'status {answer.status_code}'


async def _raw(visitor: Visitor, sent: bytes, wait: float = 0.2) -> str:
    """Send bytes and hang up."""
    url = httpx.URL(visitor.page.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(sent)
    await writer.drain()
    await asyncio.sleep(wait)
    writer.transport.abort()
    return ''


async def _abort_upload(visitor: Visitor, bait: Bait) -> str:
    head = (
        f'POST {_API}/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n'
        'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n'
        'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    return await _raw(visitor, head.encode() + bytes(300_000))


async def _abort_body(visitor: Visitor, bait: Bait) -> str:
    head = f'POST {_API}/queue/join HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n'
    return await _raw(visitor, head.encode() + b'{"data": [')


async def _garbage(visitor: Visitor, bait: Bait) -> str:
    return await _raw(visitor, b'\x16\x03\x01 no HTTP\r\n\r\n')


async def _leave_before_the_answer(visitor: Visitor, bait: Bait) -> str:
    """Ask, listen for a moment, and hang up."""
    await visitor.join(visitor.page.example, [0])
    path = f'{_API}/queue/data?session_hash={visitor.session}'
    return await _raw(visitor, f'GET {path} HTTP/1.1\r\nHost: x\r\n\r\n'.encode())


async def _never_listen(visitor: Visitor, bait: Bait) -> str:
    answer = await visitor.join(visitor.page.example, [1])
    return '' if answer.status_code == 200 else f'status {answer.status_code}'


async def _unknown_session(visitor: Visitor, bait: Bait) -> str:
    message = await visitor.hear()
    return '' if message.get('session_not_found') else json.dumps(message)[:100]


def _quoted(path) -> str:
    return urllib.parse.quote(str(path))


def bad_requests(megabytes: float) -> dict[str, Callable[[Visitor, Bait], Awaitable[str]]]:
    """List all kinds of bad requests.

    Args:
        megabytes (float): Size of a file that is taken.

    Returns:
        dict[str, Callable]: By name, functions of a visitor and the bait; each returns what
        should not have happened, an empty string if all is well.
    """
    cases = {name: _file_case(*file) for name, file in _files().items()}
    form = {'Content-Type': 'multipart/form-data; boundary=x'}
    field = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\ntext\r\n--x--\r\n'
    two = [('files', ('a.png', b'x')), ('files', ('b.png', b'x'))]
    cases |= {
        'upload: too large': _too_large,
        'upload: too large, in parts': _too_large_in_parts,
        'upload: two files': _post_case('upload', files=two),
        'upload: no file': _post_case('upload', data=dict(a='b')),
        'upload: a text as file': _post_case('upload', content=field, headers=form),
        'upload: no boundary': _post_case(
            'upload', content=b'x', headers={'Content-Type': 'multipart/form-data'}
        ),
        'upload: garbage': _post_case('upload', content=b'garbage', headers=form),
        'model: unknown': _wish(model_a='../../secret.pth'),
        'model: a number': _wish(model_a=7),
        'model: an object': _wish(model_a={'path': '/etc/passwd', 'meta': _META}),
        'stage: a text': _wish(stage_a='abc'),
        'stage: NaN': _wish(stage_a=float('nan')),
        'head: far below 0': _wish(head_a=-(10**30)),
        'opacity: 7': _wish(alpha=7),
        'size: 100000 pixels': _wish(size=100_000),
        'marks: of another type': _wish(marks={'a': 1}),
        'marks: unknown': _wish(marks=['everything']),
        'compare: a list': _wish(compare=[[[]]]),
        'example: out of range': _join_case(
            lambda body, page: body.update(fn_index=page.example, data=[10**6])
        ),
        'click: no place': _join_case(
            lambda body, page: body.update(fn_index=page.pick, data=page.wishes()[:6])
        ),
        'data: missing': _without('data'),
        'data: too short': _set(data=[]),
        'data: no list': _set(data='x'),
        'function: missing': _without('fn_index'),
        'function: unknown': _set(fn_index=10**6),
        'session: missing': _without('session_hash'),
        'session: an object': _set(session_hash={'a': 1}),
        'session: long': _set(session_hash='x' * 5000),
        'session: unknown': _unknown_session,
        'body: empty': _post_case('queue/join', content=b''),
        'body: no JSON': _post_case('queue/join', content=b'{"data": ['),
        'body: a list': _post_case('queue/join', content=b'[]'),
        'body: nested deeply': _post_case('queue/join', content=b'[' * 60_000),
        'body: huge': _post_case('queue/join', content=b'{"data": "' + b'x' * 3_000_000 + b'"}'),
        'aborted: upload': _abort_upload,
        'aborted: body': _abort_body,
        'aborted: no HTTP': _garbage,
        'aborted: before the answer': _leave_before_the_answer,
        'aborted: never listens': _never_listen,
    }
    return cases | _paths()


def _paths() -> dict:
    """Files and addresses that are none of the page's."""
    here = Path(__file__).resolve()
    return {
        'image: /etc/passwd': _reference_case(lambda bait: '/etc/passwd'),
        'image: climbs out': _reference_case(lambda bait: f'{bait.link.parent}/../../etc/passwd'),
        'image: file:// address': _reference_case(lambda bait: bait.secret.as_uri()),
        'image: a link out': _reference_case(lambda bait: str(bait.link)),
        'image: relative': _reference_case(lambda bait: 'secret.txt'),
        'image: NUL': _reference_case(lambda bait: '/etc/passwd\0.png'),
        'image: an address': _reference_case(lambda bait: bait.address),
        'image: an address as url': _reference_case(
            lambda bait: str(bait.secret), url='http://localhost/'
        ),
        'image: without mark': _reference_case(lambda bait: '/etc/passwd', meta=None),
        'image: the folder': _reference_case(lambda bait: str(bait.link.parent)),
        'GET: /etc/passwd': _get_case(lambda bait: f'{_API}/file=/etc/passwd'),
        'GET: climbs out': _get_case(
            lambda bait: f'{_API}/file={_quoted(bait.link.parent)}/%2e%2e/%2e%2e/secret.txt'
        ),
        'GET: backslashes': _get_case(lambda bait: f'{_API}/file=..%5C..%5Csecret.txt'),
        'GET: the secret': _get_case(lambda bait: f'{_API}/file={_quoted(bait.secret)}'),
        'GET: file:// address': _get_case(lambda bait: f'{_API}/file=file:///etc/passwd'),
        'GET: a link out': _get_case(lambda bait: f'{_API}/file={_quoted(bait.link)}'),
        'GET: the environment': _get_case(lambda bait: f'{_API}/file=/proc/self/environ'),
        'GET: the program': _get_case(lambda bait: f'{_API}/file={_quoted(here)}'),
        'GET: relative': _get_case(lambda bait: f'{_API}/file=app.py'),
        'GET: an address': _get_case(lambda bait: f'{_API}/file={bait.address}'),
        'GET: proxy': _get_case(lambda bait: f'{_API}/proxy={bait.address}'),
        'GET: assets climb': _get_case(lambda bait: '/static/..%2f..%2f..%2f..%2fetc/passwd'),
        'GET: component files': _get_case(
            lambda bait: f'{_API}/custom_component/x/client/component/..%2fsecret'
        ),
        'GET: monitoring': _get_case(lambda bait: '/monitoring/summary'),
        'POST: server functions': _post_case('component_server', json=dict(fn_name='ls')),
        'POST: recording': _post_case('process_recording', files=dict(video=('a.mp4', b'x'))),
        'POST: run': _post_case('run/upload', json=dict(data=[None])),
        'POST: call': _post_case('call/upload', json=dict(data=[None])),
    }
