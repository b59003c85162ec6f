"""The demo as a server: good and bad requests at once, and what is left of them."""

import asyncio
import io
import urllib.parse

import numpy as np
import pytest

pytest.importorskip('gradio', reason='the demo needs gradio: pip install gradio')
pytest.importorskip('mmpretrain')
import httpx
from cluster_demo.allowlist import RefusedError, file_inside
from demo_client import API, Page, Visitor
from PIL import Image


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


def image(path):
    """An image that is said to be some other file, or an address."""

    def send(visitor, secret):
        file = dict(path=path.format(secret=secret), meta={'_type': 'gradio.FileData'})
        return visitor.join(visitor.page.upload, [None, file])

    return send


def get(path):
    return lambda visitor, secret: visitor.get(path.format(secret=urllib.parse.quote(str(secret))))


def post(path, **options):
    return lambda visitor, secret: visitor.post(path, **options)


BAD = {
    'upload: too large': post('upload', files=dict(files=('a.png', bytes(1_100_000)))),
    'model: unknown': value(model_a='../../secret.pth'),
    'stage: a text': value(stage_a='abc'),
    'opacity: 7': value(alpha=7),
    'data: too short': change(data=[]),
    'body: no JSON': post('queue/join', content=b'{"data": ['),
    'image: outside': image('{secret}'),
    'image: an address': image('http://127.0.0.1:9/x.png'),
    'GET: outside': get(f'{API}/file={{secret}}'),
    'GET: climbs out': get(f'{API}/file={{secret}}/%2e%2e/%2e%2e/secret.txt'),
    'GET: proxy': get(f'{API}/proxy=http://127.0.0.1:9/x.png'),
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
    assert file_inside(str(folder / 'a.png'), folder) == folder / 'a.png'
    assert file_inside(f'{folder}/../in/a.png', folder) == folder / 'a.png'
    for name in (tmp_path / 'b.png', folder / '..' / 'b.png', folder / 'link', folder, 'a.png', ''):
        with pytest.raises(RefusedError, match='no such file') as refused:
            file_inside(str(name), folder)
        assert refused.value.status == 403


def test_predict_for_programs(server, sources, tmp_path):
    """What --api offers to gradio_client; without it nothing is."""
    from cluster_demo.engine import Engine
    from cluster_demo.page import build_page
    from gradio_client import Client, exceptions, handle_file

    (tmp_path / 'a.png').write_bytes(encode(1))
    (tmp_path / 'b.png').write_text('no image')
    client = Client(server.url, verbose=False)
    (parameters,) = (
        x['parameters'] for x in client.view_api(return_format='dict')['named_endpoints'].values()
    )
    for label in parameters[1]['type']['enum'][:3]:
        found = client.predict(handle_file(tmp_path / 'a.png'), label, api_name='/predict')
        assert found['model'] == label
        assert all(0 <= row['score'] <= 1 for row in found['predictions'])
    with pytest.raises(exceptions.AppError, match='not an image'):
        client.predict(handle_file(tmp_path / 'b.png'), api_name='/predict')
    with pytest.raises(httpx.HTTPStatusError):
        client.predict(handle_file(tmp_path / 'a.png'), 'none', api_name='/predict')
    closed = build_page(Engine(list(sources.values())), [tmp_path / 'a.png'], tmp_path)
    assert closed.get_api_info()['named_endpoints'] == {}


def test_nothing_is_left_when_it_stops(server):
    """Runs last: it ends the server."""
    assert any((server.folder / 'examples').iterdir())
    server.process.terminate()
    server.process.wait(60)
    assert not list(server.temporary.glob('coc_mm_demo_*'))
