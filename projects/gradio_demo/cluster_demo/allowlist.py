"""ASGI middleware that passes on only the requests that the page itself sends.

gradio also fetches addresses for visitors, serves caches of the current folder, runs server
functions of components, and hands values to the page's functions as they come.
"""

import json
import math
import re
from pathlib import Path

import gradio as gr
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

__all__ = ['AllowlistMiddleware', 'RefusedError', 'check_event', 'file_inside']

_API = '/gradio_api'
_GET = re.compile(
    r'/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?'
    rf'|/(static|assets|svelte)/.+|{_API}/(info|startup-events|app_id|theme\.css)/?|{_API}/file=.+'
    rf'|{_API}/(queue/status|queue/data|upload_progress)/?|{_API}/heartbeat/[A-Za-z0-9_-]{{1,64}}'
)
_POST = re.compile(rf'{_API}/(queue/join|upload|cancel|reset)/?')
_MAX_JSON = 64 * 1024
_JSON_TYPE = b'application/json'
_MAX_FORM = 16 * 1024  # what an upload adds to its file
# The page moves the ends of these sliders to the chosen model; handlers take the nearest value.
_MOVING = ('stage', 'block', 'head')
_MAX_MOVING = 9999
_MAX_POSITION = 2**16


class RefusedError(Exception):
    """A request that is answered with an HTTP status and a message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def file_inside(path: str, folder: Path) -> Path:
    """Resolve the absolute path of a file that must lie in a folder, its links followed."""
    try:
        found = Path(path).resolve(strict=True)
        allowed = Path(path).is_absolute() and found.is_relative_to(folder.resolve())
        allowed = allowed and found.is_file()
    except (OSError, ValueError, RuntimeError):
        allowed = False
    if not allowed:
        raise RefusedError(403, 'There is no such file here.')
    return found


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise RefusedError(400, f'{what} cannot be used.')


def _check_number(value, low: float, high: float, what: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise RefusedError(400, f'{what} must be a number from {low:g} to {high:g}.')


def _check_value(block, value, folder: Path):
    """Check a control's value against what it can be set to; return what is passed on."""
    what = f'The value of {getattr(block, "label", None) or "a control"!r}'
    if isinstance(block, gr.Slider):
        moving = str(block.elem_id).split('-')[0] in _MOVING
        low, high = (0, _MAX_MOVING) if moving else (block.minimum, block.maximum)
        _check_number(value, low, high, what)
    elif isinstance(block, gr.Dropdown):
        _need(value in [choice for _, choice in block.choices], what)
    elif isinstance(block, gr.CheckboxGroup):
        choices = [choice for _, choice in block.choices]
        _need(isinstance(value, list) and all(item in choices for item in value), what)
    elif isinstance(block, gr.Dataset):
        _need(type(value) is int and 0 <= value < len(block.samples), 'The number of the example')
    elif isinstance(block, gr.Image) and value is not None:
        _need(isinstance(value, dict) and isinstance(value.get('path'), str), 'The image')
        path = str(file_inside(value['path'], folder))  # never an address, which would be fetched
        return dict(path=path, meta={'_type': 'gradio.FileData'})
    return value


def check_event(page: gr.Blocks, body: dict, folder: Path) -> dict:
    """Check a request to gradio's queue; return what of it is passed on, or refuse it."""
    session, number, data = (body.get(key) for key in ('session_hash', 'fn_index', 'data'))
    _need(isinstance(session, str) and 0 < len(session) <= 64, 'The session')
    _need(type(number) is int and number in page.fns, 'The function')
    function = page.fns[number]
    _need(isinstance(data, list) and len(data) == len(function.inputs), 'The list of values')
    values = [_check_value(*pair, folder) for pair in zip(function.inputs, data, strict=True)]
    event = None
    if function.collects_event_data:
        event = body.get('event_data')
        index = event.get('index') if isinstance(event, dict) else None
        _need(isinstance(index, list) and len(index) == 2, 'The position of the click')
        for value in index:
            _check_number(value, 0, _MAX_POSITION, 'The position of the click')
        event = dict(index=index, value=None)
    return dict(session_hash=session, fn_index=number, data=values, event_data=event)


class AllowlistMiddleware:
    """Refuse all requests to gradio's ``app`` but those of the ``page``, one message each.

    Files can be read in ``folder`` alone, uploads have at most ``megabytes`` MB.
    """

    def __init__(self, app, page: gr.Blocks, folder: Path, megabytes: float):
        self.app, self.page, self.folder = app, page, folder
        self.max_bytes = round(megabytes * 1e6) + _MAX_FORM

    async def __call__(self, scope, receive, send) -> None:
        """Answer a request, or pass it on."""
        if scope['type'] == 'websocket':
            return await send(dict(type='websocket.close', code=1008))
        if scope['type'] == 'http':
            try:
                scope, receive = await self._check(scope, receive)
            except ClientDisconnect:
                return
            except RefusedError as error:
                answer = JSONResponse(dict(detail=str(error)), error.status)
                return await answer(scope, receive, send)
        await self.app(scope, receive, send)

    async def _check(self, scope, receive):
        request, path = Request(scope, receive), scope['path']
        allowed = {'GET': _GET, 'HEAD': _GET, 'POST': _POST}.get(request.method)
        if allowed is None or not allowed.fullmatch(path):
            raise RefusedError(404, 'There is nothing here.')
        if path.startswith(f'{_API}/file='):
            file_inside(path.split('=', 1)[1], self.folder)
        if request.method != 'POST':
            return scope, receive
        limit = self.max_bytes if path.startswith(f'{_API}/upload') else _MAX_JSON
        length = request.headers.get('content-length', '')
        if not length.isdecimal() or int(length) > limit:
            raise RefusedError(413, f'The request is too large; {limit / 1e6:g} MB are taken.')
        if not path.startswith(f'{_API}/queue/join'):
            return scope, receive
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            body = None
        _need(isinstance(body, dict), 'A request that is no JSON object')
        content = json.dumps(check_event(self.page, body, self.folder)).encode()
        headers = [x for x in scope['headers'] if x[0] not in (b'content-length', b'content-type')]
        headers += [(b'content-length', b'%d' % len(content)), (b'content-type', _JSON_TYPE)]
        sent = iter([dict(type='http.request', body=content, more_body=False)])

        async def receive_again():
            return next(sent, None) or await receive()

        return dict(scope, headers=headers), receive_again
