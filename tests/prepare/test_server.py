"""The command against a bad server: dropped connections, damage, and several files at once."""

import hashlib
import threading
from dataclasses import replace

import pytest
from test_archives import write_zip
from test_download import Handler, server  # noqa: F401  a fixture
from test_tree import COCO, COCO_TREE, data, recipes, run  # noqa: F401  fixtures

from coc_mm.cli import prepare as command


@pytest.fixture
def published(recipes, server, tmp_path, monkeypatch):  # noqa: F811
    """Put the small COCO on the server, with its checksums in the recipe."""
    content = {}
    for name, files in COCO.items():
        write_zip(tmp_path / name, files)
        content[f'/{name}'] = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
    server.content = content
    sums = {name[1:]: f'md5:{hashlib.md5(file).hexdigest()}' for name, file in content.items()}
    archives = tuple(
        replace(archive, url=f'{server.url}/{archive.name}', checksum=sums[archive.name])
        for archive in recipes['coco'].archives
    )
    monkeypatch.setitem(command.RECIPES, 'coco', replace(recipes['coco'], archives=archives))
    return content


def test_a_tree_from_a_server_that_drops(published, server, run, tmp_path):  # noqa: F811
    server.drops = [200, 150, 100, 50, 10]
    root = tmp_path / 'coco'
    status, said = run('coco', '--root', root)
    assert status == 0, said
    assert data(root) == COCO_TREE
    assert len(server.requests) == 3 + 5, 'each drop was taken up'
    assert sum(asked is not None for _, asked in server.requests) == 5
    server.requests.clear()
    assert run('coco', '--root', root)[0] == 0
    assert not server.requests, 'a second run fetches nothing'


def test_a_damaged_file_is_refused_until_it_is_whole(published, server, run, tmp_path):  # noqa: F811
    whole = published['/val2017.zip']
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255
    published['/val2017.zip'] = bytes(broken)
    root = tmp_path / 'coco'
    status, said = run('coco', '--root', root)
    assert status == 2
    assert 'val2017.zip: md5 is' in said
    assert data(root) == {}
    assert {path.name for path in (root / 'archives').iterdir()} == {
        'annotations_trainval2017.zip',
        'train2017.zip',
    }
    published['/val2017.zip'] = whole
    server.requests.clear()
    status, said = run('coco', '--root', root)
    assert status == 0, said
    assert data(root) == COCO_TREE
    assert server.requests == [('/val2017.zip', None)], 'what was whole is not fetched again'


@pytest.mark.parametrize('jobs', [1, 3])
def test_files_are_fetched_at_once(published, server, run, tmp_path, monkeypatch, jobs):  # noqa: F811
    """Every answer waits for the others to be asked for, which one at a time never are."""
    meeting = threading.Barrier(3, timeout=20 if jobs == 3 else 0.2)
    met = []
    answer = Handler.do_GET

    def together(self):
        try:
            meeting.wait()
            met.append(self.path)
        except threading.BrokenBarrierError:
            pass
        answer(self)

    monkeypatch.setattr(Handler, 'do_GET', together)
    root = tmp_path / 'coco'
    status, said = run('coco', '--root', root, '--jobs', jobs)
    assert status == 0, said
    assert data(root) == COCO_TREE
    assert len(met) == (3 if jobs == 3 else 0)
