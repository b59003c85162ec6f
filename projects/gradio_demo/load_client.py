"""Visitors of the demo without a browser, and the images that good ones bring."""

import asyncio
import base64
import hashlib
import io
import json
import re
import secrets
import urllib.parse
from dataclasses import dataclass, field

import httpx
import numpy as np
from PIL import Image

__all__ = ['Page', 'Report', 'Visitor', 'coded', 'good_images']

_API = '/gradio_api'


@dataclass
class Report:
    """What became of a request.

    Attributes:
        kind (str): 'good', or what is bad about it.
        problem (str): What should not have happened; empty if all is well.
        seconds (float): Until the answer was complete.
        waits (int): Times that the server asked to come again.
    """

    kind: str
    problem: str = ''
    seconds: float = 0
    waits: int = 0


@dataclass
class Page:
    """The controls and functions of the page, as the server tells them.

    Args:
        url (str): Of the server.
        config (dict): What it answers to ``/config``.
        model (str, optional): Label to ask; the first of the list if None.
    """

    url: str
    config: dict
    model: str | None = None
    values: dict = field(init=False)

    def __post_init__(self):
        self.ids = {
            c['props']['elem_id']: c['id']
            for c in self.config['components']
            if c['props'].get('elem_id')
        }
        self.values = {c['id']: c['props'].get('value') for c in self.config['components']}
        if self.model is not None:
            self.values[self.ids['model-a']] = self.model
        self.upload = self._function('image', 'upload')
        self.pick = self._function('overlay-a', 'select')
        self.example = self._function('examples', 'click')

    def _function(self, where: str, event: str) -> int:
        target = [self.ids[where], event]
        return next(d['id'] for d in self.config['dependencies'] if target in d['targets'])

    @property
    def refresh(self) -> int:
        """The function that follows an upload and answers for the first panel."""
        return self.upload + 1

    def wishes(self, **others) -> list:
        """Values for :attr:`refresh`, those of the page except where others are given.

        Args:
            **others: By the name of the control: ``model_a='x'``.

        Returns:
            list: In the order of the function's arguments.
        """
        values = dict(self.values)
        for name, value in others.items():
            values[self.ids[name.replace('_', '-')]] = value
        inputs = self.config['dependencies'][self.refresh]['inputs']
        return [values[number] for number in inputs]


class Visitor:
    """One visitor, as a browser would be, with an open page.

    Args:
        page (Page): Where to.
        client (httpx.AsyncClient): Shared by visitors.
        patience (float): Seconds to come again while the server is full. Defaults to 300.
    """

    def __init__(self, page: Page, client: httpx.AsyncClient, patience: float = 300):
        self.page, self.client, self.patience = page, client, patience
        self.session = secrets.token_hex(6)
        self.waits = 0
        self._life = None

    async def __aenter__(self):
        self._life = asyncio.create_task(self._live())
        return self

    async def __aexit__(self, *error):
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)

    async def _live(self) -> None:
        path = f'{_API}/heartbeat/{self.session}'
        async with self.client.stream('GET', path, timeout=None) as answer:
            async for _ in answer.aiter_raw():
                pass

    async def post(self, path: str, **options) -> httpx.Response:
        """Send something, again while the server has no room for it.

        ``content`` may be a function that begins a body anew.
        """
        waited, content = 0.0, options.get('content')
        while True:
            if callable(content):
                options['content'] = content()
            answer = await self.client.post(f'{_API}/{path}', **options)
            if answer.status_code != 503 or waited > self.patience:
                return answer
            self.waits += 1
            pause = 0.2 + 0.3 * secrets.randbelow(10) / 10
            await asyncio.sleep(pause)
            waited += pause

    async def upload(self, content: bytes, name: str = 'image.png') -> httpx.Response:
        """Send a file."""
        return await self.post('upload', files=dict(files=(name, content)))

    async def join(self, function: int, data: list, **others) -> httpx.Response:
        """Ask for a function to be called."""
        body = dict(session_hash=self.session, fn_index=function, data=data, **others)
        # NaN is no JSON, but Python's encoder writes it and others may send it.
        content = json.dumps(body).encode()
        return await self.post('queue/join', content=content)

    async def hear(self) -> dict:
        """Wait for the answer to :meth:`join`."""
        said = dict(session_hash=self.session)
        async with self.client.stream('GET', f'{_API}/queue/data', params=said) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                message = json.loads(line[5:]) if line.startswith('data:') else {}
                if message.get('msg') in ('process_completed', 'unexpected_error'):
                    return message
        raise RuntimeError('the answer ended early')

    async def ask(self, function: int, data: list, **others) -> list:
        """Call a function.

        Args:
            function (int): Of the page.
            data (list): Its arguments.
            **others: Further entries of the request.

        Returns:
            list: Its results.

        Raises:
            RuntimeError: The server refused or failed.
        """
        answer = await self.join(function, data, **others)
        if answer.status_code != 200:
            raise RuntimeError(f'{answer.status_code}: {answer.text[:200]}')
        message = await self.hear()
        if not message.get('success'):
            raise RuntimeError(f'no success: {json.dumps(message)[:200]}')
        return message['output']['data']

    async def show(self, content: bytes, name: str = 'image.png') -> list:
        """Upload an image and give it to the page: image, message and remark at the end."""
        answer = await self.upload(content, name)
        if answer.status_code != 200:
            raise RuntimeError(f'{answer.status_code}: {answer.text[:200]}')
        file = dict(path=answer.json()[0], meta={'_type': 'gradio.FileData'}, orig_name=name)
        return await self.ask(self.page.upload, [file])

    async def look(self, content: bytes) -> str:
        """Show an image and hear what the model says.

        Args:
            content (bytes): An image file.

        Returns:
            str: Digest of the answer and of the pictures; of the same image always the same.

        Raises:
            RuntimeError: There is no answer, or one that cannot be right.
        """
        message = (await self.show(content))[3]
        if message:
            raise RuntimeError(f'the image is refused: {message}')
        answer = await self.ask(self.page.refresh, self.page.wishes())
        overlay, sheet, message, label, facts = (answer[i] for i in (3, 5, 7, 8, 11))
        if message or not overlay:
            raise RuntimeError(f'no picture: {message}')
        digest = hashlib.sha256()
        for picture in (overlay, sheet):
            path = urllib.parse.quote(picture['path'])
            found = await self.client.get(f'{_API}/file={path}')
            found.raise_for_status()
            Image.open(io.BytesIO(found.content)).load()
            digest.update(found.content)
        facts = re.sub(r'[\d.]+ s\.$', '', facts)  # the time that the model took
        digest.update(json.dumps([label, facts], sort_keys=True).encode())
        return base64.b16encode(digest.digest()[:8]).decode()


def coded(image: Image.Image, form: str, **options) -> bytes:
    """Write an image into memory."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def good_images(count: int = 6) -> list[bytes]:
    """Make images that differ, in several formats.

    Args:
        count (int): How many. Defaults to 6.

    Returns:
        list[bytes]: Files.
    """
    rng, made = np.random.default_rng(0), []
    kinds = (('PNG', 'RGB'), ('JPEG', 'RGB'), ('WEBP', 'RGB'), ('PNG', 'L'), ('GIF', 'P'))
    for number in range(count):
        form, mode = kinds[number % len(kinds)]
        coarse = rng.integers(0, 255, (5 + number, 7, 3), np.uint8)
        image = Image.fromarray(coarse).resize((160 + 16 * number, 128)).convert(mode)
        made.append(coded(image, form))
    return made
