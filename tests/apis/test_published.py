"""Published weights by name, from a local server that also plays Google Drive."""

import errno
import functools
import importlib.util
import re
import sys
import types
import urllib.request
from pathlib import Path

import golden
import pytest
import torch
from download_server import serve

from coc_mm.apis import get_model
from coc_mm.apis.model_zoo import ModelEntry, entries, find_entry, find_models
from coc_mm.apis.published import _pick, fetch_weights, load_by_name
from coc_mm.checkpoints import convert_official
from coc_mm.errors import CheckpointError, DownloadError, UserError
from coc_mm.utils.download import download

ROOT = Path(__file__).resolve().parents[2]
NAME = 'coc-tiny_8xb128_in1k'
ID = 'x' * 30
LISTING = (
    '<html><head><title>coc_tiny</title></head><body>'
    f'<a href="https://drive.google.com/file/d/{"y" * 30}/view">log.txt</a>'
    f'<a href="https://drive.google.com/file/d/{"z" * 30}/view">checkpoint-9.pth.tar</a>'
    f'<a href="https://drive.google.com/file/d/{ID}/view">model_best.pth.tar</a></body></html>'
)
CONFIRM = (
    '<html><body><form id="download-form" action="https://drive.google.com/download" method="get">'
    f'<input type="hidden" name="id" value="{ID}"></form></body></html>'
)
QUOTA = (
    '<html><body><p class="uc-error-subcaption">Too many users have viewed it.</p></body></html>'
)


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    """The bytes of tiny in each layout."""
    folder, weights = tmp_path_factory.mktemp('official'), golden.official_state_dict('coc_tiny')
    found = {}
    for layout in golden.OTHER_NAMES:
        torch.save(dict(state_dict=golden.in_layout(layout, weights)), folder / layout)
        found[layout] = (folder / layout).read_bytes()
    return found


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('COC_MM_MIRROR', raising=False)
    with serve(monkeypatch) as behaviour:
        yield behaviour


@pytest.fixture
def entry(server):
    """Tiny with every source at the local server."""
    entry = ModelEntry(find_entry(NAME))
    entry['Sources'] = {
        name: facts | dict(Address=f'{server.url}/{facts["File"]}', Kind='https')
        for name, facts in entry.sources.items()
    }
    return entry


def serve_files(server, entry, official):
    server.content = {f'/{x["File"]}': official[x['Layout']] for x in entry.sources.values()}


def head(path):
    return torch.load(path, weights_only=True)['state_dict']['head.fc.weight']


def files():
    return sorted(path.name for path in Path('checkpoints').glob('*'))


def test_every_published_file_is_listed_once():
    extra = [str(ROOT / 'projects/point_cloud/metafile.yml'), 'projects/none.yml']
    found = find_models(['all'], extra)
    facts = [x for entry in found for x in entry.sources.values()]
    assert (len(found), len(facts)) == (18, 25)
    for key in ('Address', 'File'):
        assert len({x[key] for x in facts}) == 25
    assert {x['Kind'] for x in facts} == {'https', 'drive-file', 'drive-folder'}
    assert [find_entry('coc-tiny2_8xb128_in1k').sources['submission']['Figure']] == [71.7]
    assert find_models(['*-c49_*ade20k*'])[0].sources['submission']['Figure'] == 36.3
    with pytest.raises(UserError, match='did you mean coc-tiny_'):
        find_models(['coc-tiny_8xb128'])


@pytest.mark.parametrize('source', [None, 'openmixup', 'submission'])
def test_fetched_converted_and_used_again(server, entry, official, source):
    serve_files(server, entry, official)
    server.drops = [100_000]
    path = fetch_weights(entry, source)
    assert str(path) == f'checkpoints/{NAME}.pth'
    assert files() == [f'{NAME}.pth', f'{NAME}.pth.sha256']
    sums = dict(reversed(line.split()) for line in Path(f'{path}.sha256').read_text().splitlines())
    assert list(sums) == [entry.sources[source or 'released']['File'], path.name]
    meta = torch.load(path, weights_only=True)['meta']['coc_mm']
    assert meta['source_sha256'] in sums.values()
    used = 'similarity' if source is None else 'count'
    assert meta['backbone']['denominator'] == used
    assert len(server.requests) == 2, 'the cut connection was taken up'
    expected = convert_official(golden.official_state_dict('coc_tiny'))
    assert torch.equal(head(path), expected['head.fc.weight'])
    server.content = {}
    assert fetch_weights(entry, source) == path


def test_another_source_gets_a_name_of_its_own(server, entry, official, monkeypatch):
    serve_files(server, entry, official)
    monkeypatch.setitem(entries(), NAME, entry)
    model = get_model(NAME, pretrained='openmixup')
    assert model.backbone.blocks[0][0].mixer.denominator == 'count'
    assert fetch_weights(entry).name == f'{NAME}-released.pth'
    assert get_model(NAME, pretrained=True).backbone.blocks[0][0].mixer.denominator == 'count'
    for address, name in (
        (f'coc_mm://{NAME}', 'openmixup'),
        (f'coc_mm://{NAME}/released', 'released'),
    ):
        content = load_by_name(address)
        assert content['meta']['coc_mm']['source'] == name
    with pytest.raises(UserError, match="no source 'drive'; there is released, openmixup"):
        fetch_weights(entry, 'drive')
    with pytest.raises(UserError, match='no weights of coc-base-dim64_8xb128_in1k are published'):
        fetch_weights(find_entry('coc-base-dim64_8xb128_in1k'))
    other = Path(f'checkpoints/{NAME}-submission.pth')
    torch.save(dict(meta={}, state_dict={}), other)
    with pytest.raises(UserError, match='other weights than those of submission'):
        fetch_weights(entry, 'submission')


def test_inferencers_fetch_by_name(server, entry, official, monkeypatch):
    serve_files(server, entry, official)
    monkeypatch.setitem(entries(), NAME, entry)
    from mmpretrain import ImageClassificationInferencer

    model = ImageClassificationInferencer(NAME).model
    expected = convert_official(golden.official_state_dict('coc_tiny'))
    assert torch.equal(model.head.fc.weight, expected['head.fc.weight'].float())


@pytest.mark.parametrize('kind', ['URL', 'FOLDER'])
def test_a_mirror(server, official, monkeypatch, tmp_path, kind):
    entry = find_entry(NAME)  # with its addresses on the net
    serve_files(server, entry, official)
    file = entry.sources['released']['File']
    (tmp_path / file).write_bytes(official['released'])
    mirror = f'{server.url}/' if kind == 'URL' else str(tmp_path)
    monkeypatch.setenv('COC_MM_MIRROR', mirror)
    assert fetch_weights(entry).is_file()
    assert (tmp_path / file).is_file(), 'a file of the mirror was taken away'
    if kind == 'FOLDER':
        with pytest.raises(DownloadError, match=r'no file coc_small\.pth\.tar'):
            fetch_weights(find_entry('coc-small_8xb128_in1k'))


FAILURES = [  # what happens -> what the message says
    (dict(status=[404]), r'HTTP 404.*\n.*Get http.*browser and run\npython tools/model_conv'),
    (dict(content=b'<!doctype html><p>Sign in'), 'web page instead of the file'),
    (dict(content=b'PK and nothing else'), 'another file than was published; nothing was written'),
    (dict(content='submission'), 'it has the submission layout, not released'),
    (dict(SHA256='0' * 64), 'sha256 is .* published is 000'),
    (
        dict(Address='http://127.0.0.1:9/x', drops=[]),
        r'gave up after 4 .*refused(.*\n)+.*COC_MM_MI',
    ),
]


@pytest.mark.parametrize(('how', 'says'), FAILURES)
def test_failures_say_why_and_leave_nothing(server, entry, official, monkeypatch, how, says):
    serve_files(server, entry, official)
    monkeypatch.setattr('coc_mm.apis.published.download', functools.partial(download, pause=0))
    for key, value in how.items():
        if key in ('SHA256', 'Address'):
            entry['Sources']['released'][key] = value
        else:
            setattr(server, key, official.get(value, value) if key == 'content' else value)
    with pytest.raises((DownloadError, CheckpointError), match=says):
        fetch_weights(entry)
    assert files() == []


def stand_in(server):
    """What is used of gdown, for where it is not installed."""

    def get(path):
        with urllib.request.urlopen(f'{server.url}{path}') as response:
            return response.read()

    def download_folder(*, id, output, quiet, skip_download):
        found = re.findall(
            r'/d/(\w+)/view">(.*?)</a>', get(f'/embeddedfolderview?id={id}').decode()
        )
        return [types.SimpleNamespace(id=file, path=name) for file, name in found]

    def download(*, id, output, quiet, resume):
        page = get(f'/uc?id={id}').decode()
        if 'download-form' not in page:
            raise RuntimeError(f'Failed to retrieve file url: {page}')
        Path(output).write_bytes(get(f'/download?id={id}'))
        return output

    return types.SimpleNamespace(download=download, download_folder=download_folder)


@pytest.fixture(params=['stand-in', 'real'])
def drive(request, server, official, monkeypatch):
    """Google Drive, as gdown meets it."""
    if request.param == 'stand-in':
        monkeypatch.setitem(sys.modules, 'gdown', stand_in(server))
    else:
        pytest.importorskip('gdown')
        import requests

        original = requests.Session.get

        def get(self, url, **kwargs):
            url = re.sub('https://(drive|docs).google.com', server.url, url)
            response = original(self, url, **kwargs)
            if '/download' in url:
                response.headers['Content-Disposition'] = 'attachment; filename="model.pth.tar"'
            else:
                response.headers['Content-Type'] = 'text/html; charset=utf-8'
            return response

        monkeypatch.setattr(requests.Session, 'get', get)
    server.content = {
        '/embeddedfolderview?id=155Lfofxr7vpdcUxL8ZvzlrNX4cUlhn3J': LISTING.encode(),
        f'/uc?id={ID}': CONFIRM.encode(),
        f'/download?id={ID}': official['released'],
    }
    return server


def test_a_folder_of_google_drive(drive):
    path = fetch_weights(find_entry(NAME))
    expected = convert_official(golden.official_state_dict('coc_tiny'))
    assert torch.equal(head(path), expected['head.fc.weight'])
    assert files() == [f'{NAME}.pth', f'{NAME}.pth.sha256']


def test_what_google_drive_says_instead(drive):
    drive.content[f'/uc?id={ID}'] = QUOTA.encode()
    with pytest.raises(DownloadError, match=r'Too many users(.*\n)+.*COC_MM_MIRROR=FOLDER'):
        fetch_weights(find_entry(NAME))
    for page in drive.content:
        if 'folder' in page:
            drive.content[page] = LISTING.replace('.pth.tar', '.txt').encode()
    with pytest.raises(DownloadError, match=r'holds no checkpoint \(it has log\.txt, '):
        fetch_weights(find_entry(NAME))
    assert files() == []


def test_google_drive_without_gdown_or_room(monkeypatch, server):
    monkeypatch.setitem(sys.modules, 'gdown', None)
    with pytest.raises(DownloadError, match='pip install gdown'):
        fetch_weights(find_entry(NAME))

    def full(**_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    full_disk = types.SimpleNamespace(download=full, download_folder=full)
    monkeypatch.setitem(sys.modules, 'gdown', full_disk)
    with pytest.raises(DownloadError, match='Google Drive: No space left'):
        fetch_weights(find_entry(NAME))
    assert files() == []


def test_the_checkpoint_of_a_folder():
    for names, best in (
        (['log.txt', 'checkpoint-99.pth.tar', 'checkpoint-309.pth.tar'], 'checkpoint-309.pth.tar'),
        (
            ['epoch_12.pth', 'latest.pth', 'a/best_bbox_mAP_epoch_11.pth'],
            'a/best_bbox_mAP_epoch_11.pth',
        ),
        (['iter_80000.pth', 'iter_8000.pth'], 'iter_80000.pth'),
    ):
        assert _pick([(name, name) for name in names], 'address') == best


def test_point_clouds(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COC_MM_MIRROR', str(tmp_path))
    weights = golden.official_state_dict('pointmlp_coc')
    torch.save(dict(net=weights), tmp_path / 'pointmlp_coc.pth')
    spec = importlib.util.spec_from_file_location('t', ROOT / 'tools/model_converters/download.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main(['pointmlp*', '--to', 'there']) == 0
    assert Path('there/pointmlp-coc_1xb32-250e_scanobjectnn.pth').is_file()
