"""What stands between the network and gradio: only what the page needs is let through.

gradio offers more than this page uses: it fetches addresses on behalf of visitors, serves
the folder of caches in the current directory, runs server functions of components, and takes
a thousand files at once. Here a request is held against a list of routes, its size is bounded
while it comes in, and its values are checked, so that whatever is wrong gets a sentence.
"""

import json
import re
import secrets
import shutil
import urllib.parse
from pathlib import Path

import anyio.to_thread
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from .checks import RefusedError, check_event, file_inside, read_json

__all__ = ['Gate']

_API = '/gradio_api'
_READ = re.compile(
    r'/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?'
    r'|/(static|assets|svelte)/.+'
    rf'|{_API}/(info|startup-events|app_id|theme\.css|queue/status|queue/data)/?'
    rf'|{_API}/heartbeat/[A-Za-z0-9_-]{{1,64}}|{_API}/upload_progress|{_API}/file=.+'
)
_WRITE = re.compile(rf'{_API}/(queue/join|upload|cancel|reset)/?')
_MAX_JSON = 64 * 1024
_ENVELOPE = 16 * 1024  # of a file: boundaries, headers
_MIN_DISK = 500e6  # bytes that uploads leave free


class _Body:
    """The body of a request, counted while it comes in."""

    def __init__(self, receive, most: int):
        self._receive, self._most, self._seen = receive, most, 0

    async def __call__(self) -> dict:
        message = await self._receive()
        self._seen += len(message.get('body', b''))
        if self._seen > self._most:
            raise RefusedError(413, f'The request is too large; {self._most / 1e6:g} MB are taken.')
        return message

    async def read(self) -> bytes:
        parts, more = [], True
        while more:
            message = await self()
            if message['type'] == 'http.disconnect':
                raise ClientDisconnect
            parts.append(message.get('body', b''))
            more = message.get('more_body', False)
        return b''.join(parts)


def _again(body: bytes, receive):
    """A ``receive`` that tells a body once, then listens for the end of the connection."""
    told = False

    async def tell() -> dict:
        nonlocal told
        if told:
            return await receive()
        told = True
        return dict(type='http.request', body=body, more_body=False)

    return tell


def _save(file, name: str, folder: Path) -> str:
    """Write an upload into a folder of its own: two visitors may send the same image."""
    name = re.sub(r'[^\w.-]', '_', Path(name.replace('\\', '/')).name)[-80:].lstrip('.')
    path = folder / secrets.token_hex(20) / (name or 'image')
    path.parent.mkdir(parents=True)
    try:
        with path.open('xb') as copy:
            shutil.copyfileobj(file, copy)
    except OSError:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise RefusedError(507, 'There is no room for the file here; try again later.') from None
    return str(path)


class Gate:
    """An ASGI middleware around gradio's application.

    Args:
        app (Callable): The application.
        page (gr.Blocks): What it serves.
        folder (Path): The only one whose files can be read; uploads go into it.
        megabytes (float): Size of an upload.
        most_uploads (int): That are taken in at a time. Defaults to 32.
    """

    def __init__(self, app, page, folder: Path, megabytes: float, most_uploads: int = 32):
        self.app, self.page, self.folder = app, page, folder.resolve()
        self.most_bytes = round(megabytes * 1e6)
        self.most_uploads = most_uploads
        self._uploading = 0

    async def __call__(self, scope, receive, send) -> None:
        """Answer a request, or let it through."""
        if scope['type'] == 'lifespan':
            return await self.app(scope, receive, send)
        if scope['type'] != 'http':  # the page needs no websockets
            return await send(dict(type='websocket.close', code=1008))
        started, ended = False, scope['method'] != 'POST'

        async def receiving() -> dict:
            nonlocal ended
            message = await receive()
            ended = ended or not message.get('more_body', False)
            return message

        async def sending(message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._pass(scope, receiving, sending)
        except RefusedError as error:
            if not started:
                if not ended:
                    await _drain(receive, scope)
                answer = JSONResponse(dict(detail=str(error)), error.status)
                await answer(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is there to be told

    async def _pass(self, scope, receive, send) -> None:
        path, method = scope['path'], scope['method']
        allowed = _READ if method in ('GET', 'HEAD') else _WRITE if method == 'POST' else None
        climbs = '..' in re.split(r'[/\\]', path) and not path.startswith(f'{_API}/file=')
        if allowed is None or climbs or not allowed.fullmatch(path):
            raise RefusedError(404, 'There is nothing here.')
        if method == 'POST':
            return await self._post(path.rstrip('/'), scope, receive, send)
        query = urllib.parse.parse_qs(scope['query_string'].decode('latin-1'))
        if path.startswith(f'{_API}/file='):
            file_inside(path.split('=', 1)[1], self.folder)
            # Parts of files are for players of films; a range that is none would be an error.
            scope = dict(scope, headers=[x for x in scope['headers'] if x[0] != b'range'])
        elif path.startswith(f'{_API}/upload_progress'):
            return await Response('data: {"msg": "done"}\n\n', media_type='text/event-stream')(
                scope, receive, send
            )
        elif path.startswith(f'{_API}/queue/data'):
            session = query.get('session_hash', [''])[0]
            if session not in self.page._queue.pending_messages_per_session:
                return await _unknown_session()(scope, receive, send)
        elif path in ('/', '/config', '/config/'):
            theme = [x for x in query.get('__theme', []) if x in ('light', 'dark', 'system')]
            scope = dict(scope, query_string=f'__theme={theme[0]}'.encode() if theme else b'')
        await self.app(scope, receive, send)

    async def _post(self, path: str, scope, receive, send) -> None:
        upload = path == f'{_API}/upload'
        most = self.most_bytes + _ENVELOPE if upload else _MAX_JSON
        length = dict(scope['headers']).get(b'content-length', b'0')
        if length.isdigit() and int(length) > most:
            raise RefusedError(413, f'The request is too large; {most / 1e6:g} MB are taken.')
        body = _Body(receive, most)
        if upload:
            return await (await self._upload(scope, body))(scope, receive, send)
        asked = read_json(await body.read())
        if path == f'{_API}/queue/join':
            asked = check_event(self.page, asked, self.folder)
        told = json.dumps(asked).encode()
        headers = [x for x in scope['headers'] if x[0] not in (b'content-length', b'content-type')]
        headers.append((b'content-length', str(len(told)).encode()))
        headers.append((b'content-type', b'application/json'))
        await self.app(dict(scope, headers=headers), _again(told, receive), send)

    async def _upload(self, scope, receive) -> Response:
        """Take one file; what an interrupted upload leaves is gone at once."""
        if self._uploading >= self.most_uploads:
            raise RefusedError(503, 'Too many uploads at a time; try again in a moment.')
        if shutil.disk_usage(self.folder).free < _MIN_DISK + self.most_bytes:
            raise RefusedError(507, 'There is no room for files here; try again later.')
        self._uploading += 1
        try:
            async with Request(scope, receive).form(max_files=1, max_fields=0) as form:
                file = form.get('files')
                if file is None or isinstance(file, str):
                    raise RefusedError(400, 'The request holds no file.')
                name = file.filename or ''
                path = await anyio.to_thread.run_sync(_save, file.file, name, self.folder)
                return JSONResponse([path])
        except (MultiPartException, UnicodeError, KeyError) as error:
            raise RefusedError(400, f'The upload cannot be read ({error}).') from None
        except Exception as error:
            # Request.form() makes an HTTPException of what its parser says.
            if getattr(error, 'status_code', None) != 400:
                raise
            raise RefusedError(400, f'The upload cannot be read ({error.detail}).') from None
        finally:
            self._uploading -= 1


async def _drain(receive, scope, most: int = 40_000_000) -> None:
    """Read what is still on its way: who is sending sees no answer before that."""
    length = dict(scope['headers']).get(b'content-length', b'0')
    more = not length.isdigit() or int(length) <= most
    while more and most > 0:
        message = await receive()
        most -= len(message.get('body', b''))
        more = message.get('more_body', False)


def _unknown_session() -> Response:
    """What gradio itself says of a session that it does not know, as an event."""
    said = dict(
        msg='unexpected_error', message='The session is unknown.', session_not_found=True
    ) | dict(success=False)
    return Response(f'data: {json.dumps(said)}\n\n', media_type='text/event-stream')
