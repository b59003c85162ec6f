"""The demo as a server: good and bad requests at once, and what is left of them."""

import asyncio
import io
import urllib.parse

import numpy as np
import pytest

pytest.importorskip('gradio', reason='the demo needs gradio: pip install "coc-mm[demo]"')
pytest.importorskip('mmpretrain')
import httpx
from cluster_demo.allowlist import RefusedError, file_inside
from demo_client import API, Page, Visitor
from PIL import Image

FORM = {'Content-Type': 'multipart/form-data; boundary=x'}


def change(**others):
    """The right request to renew a panel, its entries changed."""

    def send(visitor, secret):
        page = visitor.page
        return visitor.join(page.refresh, **(dict(data=page.data(page.refresh)) | others))

    return send


def value(**others):
    """The same with other values of controls."""
    return lambda visitor, secret: change(data=visitor.page.data(visitor.page.refresh, **others))(
        visitor, secret
    )


def image(path, **others):
    """An image that is said to be some other file, or an address."""

    def send(visitor, secret):
        file = dict(path=path.format(secret=secret), meta={'_type': 'gradio.FileData'}) | others
        return visitor.join(visitor.page.upload, [None, file])

    return send


def get(path):
    return lambda visitor, secret: visitor.get(path.format(secret=urllib.parse.quote(str(secret))))


async def chunks():
    yield b'--x'


def post(path, **options):
    return lambda visitor, secret: visitor.post(path, **options)


BAD = {
    'upload: too large': post('upload', files=dict(files=('a.png', bytes(1_100_000)))),
    'upload: no length': lambda visitor, secret: visitor.post(
        'upload', content=chunks(), headers=FORM
    ),
    'upload: garbage': post('upload', content=b'garbage', headers=FORM),
    'model: unknown': value(model_a='../../secret.pth'),
    'model: an object': value(model_a={'path': '/etc/passwd'}),
    'stage: a text': value(stage_a='abc'),
    'stage: NaN': value(stage_a=float('nan')),
    'opacity: 7': value(alpha=7),
    'size: 100000 pixels': value(size=100_000),
    'marks: unknown': value(marks=['everything']),
    'marks: of another type': value(marks={'a': 1}),
    'example: out of range': lambda visitor, secret: visitor.join(
        visitor.page.example, [None, 10**6]
    ),
    'click: no position': lambda visitor, secret: visitor.join(
        visitor.page.pick, visitor.page.data(visitor.page.pick)
    ),
    'data: too short': change(data=[]),
    'data: a text': change(data='x'),
    'function: unknown': change(fn_index=10**6),
    'session: an object': change(session_hash={'a': 1}),
    'body: no JSON': post('queue/join', content=b'{"data": ['),
    'body: nested deeply': post('queue/join', content=b'[' * 60_000),
    'body: huge': post('queue/join', content=b'"' + b'x' * 3_000_000 + b'"'),
    'image: /etc/passwd': image('/etc/passwd'),
    'image: outside': image('{secret}'),
    'image: file:// address': image('file://{secret}'),
    'image: an address': image('http://127.0.0.1:9/x.png'),
    'image: an address as url': image('{secret}', url='http://127.0.0.1:9/x.png'),
    'GET: outside': get(f'{API}/file={{secret}}'),
    'GET: climbs out': get(f'{API}/file={{secret}}/%2e%2e/%2e%2e/secret.txt'),
    'GET: an address': get(f'{API}/file=http://127.0.0.1:9/x.png'),
    'GET: proxy': get(f'{API}/proxy=http://127.0.0.1:9/x.png'),
    'GET: assets climb': get('/static/..%2f..%2f..%2f..%2fetc/passwd'),
    'GET: monitoring': get('/monitoring/summary'),
    'POST: server functions': post('component_server', json=dict(fn_name='ls')),
    'POST: run': post('run/upload', json=dict(data=[None])),
}


def encode(number):
    """A PNG file; of other pixels for each number."""
    coarse = np.random.default_rng(number).integers(0, 255, (5, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((160 + 16 * number, 128)).save(file, 'PNG')
    return file.getvalue()


def test_good_and_bad_requests_at_once(server):
    images = [encode(number) for number in range(4)]
    secret = server.place / 'secret.txt'
    secret.write_text('this must stay here')

    async def refuse(kind, page, client):
        async with Visitor(page, client) as visitor:
            answer = await BAD[kind](visitor, secret)
        assert 400 <= answer.status_code < 500, (kind, answer.status_code)
        said = answer.text
        assert not any(x in said for x in ('Traceback', 'this must', 'root:x', 'site-packages'))
        if answer.headers['content-type'] == 'application/json':
            said = answer.json()['detail']
        assert 5 < len(said) < 300, (kind, said)

    async def look(page, client, content):
        async with Visitor(page, client) as visitor:
            return await visitor.look(content)

    async def visit():
        async with httpx.AsyncClient(base_url=server.url, timeout=300, trust_env=False) as client:
            page = Page((await client.get('/config')).json(), 'small/epoch_10.pth')
            alone = [await look(page, client, content) for content in images]
            good = [look(page, client, content) for content in images * 2]
            bad = [refuse(kind, page, client) for kind in BAD]
            together = (await asyncio.gather(*good, *bad))[: len(good)]
            async with Visitor(page, client) as visitor:
                message = await visitor.give(b'no image')
            for _ in range(20):  # until the server noticed that all have left
                await asyncio.sleep(0.5)
                if not server.pictures():
                    break
            return alone, together, message

    alone, together, message = asyncio.run(visit())
    assert len(BAD) == 33
    assert len(set(alone)) == len(images)
    assert together == alone * 2
    assert 'not an image that can be read' in message
    assert server.pictures() == []
    assert 'Traceback' not in server.log.read_text()


def test_only_files_inside_can_be_named(tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    (folder / 'a.png').write_bytes(b'a')
    (tmp_path / 'b.png').write_bytes(b'b')
    (folder / 'link').symlink_to(tmp_path / 'b.png')
    (folder / 'loop').symlink_to(folder / 'loop')
    assert file_inside(str(folder / 'a.png'), folder) == folder / 'a.png'
    assert file_inside(f'{folder}/../in/a.png', folder) == folder / 'a.png'
    names = [tmp_path / 'b.png', folder / '..' / 'b.png', folder / 'link', folder / 'loop', folder]
    names += [folder / 'none', 'a.png', '', '/etc/passwd\0', 'x' * 9999, f'file://{folder}/a.png']
    for name in names:
        with pytest.raises(RefusedError, match='no such file') as refused:
            file_inside(str(name), folder)
        assert refused.value.status == 403
    assert len(names) == 11


def test_nothing_is_left_when_it_stops(server):
    """Runs last: it ends the server."""
    assert any((server.folder / 'examples').iterdir())
    server.process.terminate()
    server.process.wait(60)
    assert not list(server.temporary.glob('coc_mm_demo_*'))
