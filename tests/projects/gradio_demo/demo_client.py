"""The demo in a process of its own, and visitors of it without a browser."""

import asyncio
import io
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

APP = Path(__file__).resolve().parents[3] / 'projects' / 'gradio_demo' / 'app.py'
API = '/gradio_api'


class Server:
    """The demo, its temporary files in ``place / 'tmp'`` and its output in ``place / 'log'``."""

    def __init__(self, place, arguments, start_within=400):
        self.place, self.temporary, self.log = place, place / 'tmp', place / 'log'
        self.temporary.mkdir()
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, APP, '--port', port, *arguments]
        environment = dict(
            os.environ, TMPDIR=str(self.temporary), MPLBACKEND='Agg', OMP_NUM_THREADS='1'
        )
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=place, env=environment, stdout=log, stderr=log
            )
        self.url = self._address(start_within)
        (self.folder,) = self.temporary.glob('coc_mm_demo_*')

    def _address(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r'Open (http://127\.0\.0\.1:\d+/)', self.log.read_text())
            if found:
                return found[1]
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f'the demo did not start:\n{self.log.read_text()}')

    def pictures(self):
        """Files that were drawn for visitors."""
        inside = (self.folder / 'pictures').rglob('*')
        return [path for path in inside if path.is_file()]

    def stop(self):
        """End it as a user would."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Page:
    """The page's controls and functions, as the server tells them."""

    def __init__(self, config, model):
        components, self.dependencies = config['components'], config['dependencies']
        self.ids = {c['props']['elem_id']: c['id'] for c in components if c['props'].get('elem_id')}
        self.values = {c['id']: c['props'].get('value') for c in components}
        self.values[self.ids['model-a']] = model
        given = [self.ids['image'], 'upload']
        self.upload = next(d['id'] for d in self.dependencies if given in d['targets'])
        self.refresh = self.upload + 1  # which answers for the first panel

    def data(self, function, **others):
        """Arguments of a function: the page's values, except where others are given."""
        values = self.values | {self.ids[k.replace('_', '-')]: v for k, v in others.items()}
        return [values.get(number) for number in self.dependencies[function]['inputs']]


class Visitor:
    """One visitor with an open page; ``async with`` opens and closes it."""

    def __init__(self, page, client):
        self.page, self.client, self.session = page, client, secrets.token_hex(6)

    async def __aenter__(self):
        self._life = asyncio.create_task(self._stay())
        return self

    async def __aexit__(self, *error):
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)

    async def _stay(self):
        async with self.client.stream('GET', f'{API}/heartbeat/{self.session}') as answer:
            async for _ in answer.aiter_raw():
                pass

    async def get(self, path):
        return await self.client.get(httpx.URL(str(self.client.base_url).rstrip('/') + path))

    async def post(self, path, **options):
        """Send something, again while the queue is full."""
        while True:
            answer = await self.client.post(f'{API}/{path}', **options)
            if answer.status_code != 503:
                return answer
            await asyncio.sleep(0.3)

    async def join(self, function, data, **others):
        """Ask for a function to be called."""
        body = dict(session_hash=self.session, fn_index=function, data=data) | others
        # NaN is no JSON, but Python's encoder writes it and others may send it.
        return await self.post('queue/join', content=json.dumps(body).encode())

    async def call(self, function, data, **others):
        """Call a function and return its results."""
        (await self.join(function, data, **others)).raise_for_status()
        said = dict(session_hash=self.session)
        async with self.client.stream('GET', f'{API}/queue/data', params=said) as answer:
            async for line in answer.aiter_lines():
                message = json.loads(line[5:]) if line.startswith('data:') else {}
                if message.get('msg') in ('process_completed', 'unexpected_error'):
                    assert message['success'], message
                    return message['output']['data']

    async def give(self, content, name='image.png'):
        """Upload an image and give it to the page; return the message about it."""
        answer = await self.post('upload', files=dict(files=(name, content)))
        file = dict(path=answer.raise_for_status().json()[0], meta={'_type': 'gradio.FileData'})
        return (await self.call(self.page.upload, self.page.data(self.page.upload, image=file)))[3]

    async def look(self, content):
        """Give an image; return the overlay's pixels and the classes with their probability."""
        assert await self.give(content) == ''
        page = self.page
        answer = await self.call(page.refresh, page.data(page.refresh))
        overlay, message, label = answer[3], answer[7], answer[8]
        assert overlay, message
        found = await self.get(f'{API}/file={urllib.parse.quote(overlay["path"])}')
        pixels = Image.open(io.BytesIO(found.raise_for_status().content))
        return np.asarray(pixels).tobytes(), json.dumps(label)
