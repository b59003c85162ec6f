"""Whole data sets, small ones, from archives and servers."""

import hashlib
import threading
from dataclasses import replace

import pytest
from download_server import Handler
from small_sets import COCO, COCO_TREE, data, files, small, write_zip

from coc_mm.prepare import RECIPES


def test_coco_from_a_folder_then_only_what_is_missing(recipes, run, tmp_path, coco_archives):
    root = tmp_path / 'coco'
    status, said = run('coco', '--root', root, '--archives', coco_archives)
    assert status == 0, said
    assert data(root) == COCO_TREE
    assert run('coco', '--root', root, '--check')[1].startswith(f'{root} is complete.\n')

    for path in coco_archives.iterdir():
        if path.name != 'train2017.zip':
            path.unlink()
    assert run('coco', '--root', root, '--archives', coco_archives)[0] == 0  # needs none of them
    (root / 'train2017/2.jpg').unlink()
    status, said = run('coco', '--root', root, '--check')
    assert status == 2
    assert 'train2017: 1 of 3 files missing or of another size, e.g. train2017/2.jpg' in said
    assert 'val2017:' not in said
    assert run('coco', '--root', root, '--archives', coco_archives)[0] == 0
    assert data(root) == COCO_TREE


def test_a_tree_made_otherwise_is_counted(recipes, run, tmp_path):
    root = tmp_path / 'coco'
    for name, content in COCO_TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    assert run('coco', '--root', root)[0] == 0
    (root / 'annotations/instances_val2017.json').unlink()
    (root / 'val2017/4.jpg').unlink()
    status, said = run('coco', '--root', root, '--check')
    assert status == 2
    assert 'annotations/instances_val2017.json is missing' in said
    assert 'val2017 holds 1 of 2 .jpg files' in said
    assert run('coco', '--root', root, '--check', '--only', 'train2017')[0] == 0


def test_coco_from_a_mirror(recipes, run, tmp_path, coco_archives, server):
    server.content = {f'/m/{path.name}': path.read_bytes() for path in coco_archives.iterdir()}
    root = tmp_path / 'coco'
    arguments = ('coco', '--root', root, '--url', f'{server.url}/m/', '--delete-downloads')
    status, said = run(*arguments, '--only', 'val2017')
    assert status == 0, said
    assert set(data(root)) == set(COCO['val2017.zip'])
    server.requests.clear()
    status, said = run(*arguments)
    assert status == 0, said
    assert data(root) == COCO_TREE
    assert sorted(path for path, _ in server.requests) == [
        '/m/annotations_trainval2017.zip',
        '/m/train2017.zip',
    ]
    assert list((root / 'archives').iterdir()) == []


def test_checksums_are_those_published(recipes, run, tmp_path, coco_archives, monkeypatch):
    published = {a.name: a.checksum for p in RECIPES['coco'].parts for a in p.archives}
    counts = {'train2017': 3, 'val2017': 2, 'annotations': 2}
    monkeypatch.setitem(recipes, 'coco', small(RECIPES['coco'], counts, **published))
    arguments = ('coco', '--root', tmp_path / 'coco', '--archives', coco_archives)
    status, said = run(*arguments)
    assert status == 2
    assert 'md5 is' in said
    assert 'published is cced6f7f71b7629ddf16f17bbcfab6b2' in said
    assert data(tmp_path / 'coco') == {}
    assert run(*arguments, '--skip-checksum')[0] == 0
    assert data(tmp_path / 'coco') == COCO_TREE


def test_an_archive_with_too_little_leaves_nothing(recipes, run, tmp_path, coco_archives):
    write_zip(coco_archives / 'train2017.zip', files('train2017', ['1.jpg', '2.jpg']))
    write_zip(coco_archives / 'val2017.zip', files('test2017', ['1.jpg', '2.jpg']))
    arguments = ('coco', '--root', tmp_path / 'coco', '--archives', coco_archives)
    status, said = run(*arguments)
    assert status == 2
    assert '2 of 3 .jpg files of train2017' in said
    status, said = run(*arguments, '--only', 'val2017')
    assert 'nothing below val2017' in said
    assert data(tmp_path / 'coco') == {}


def test_scanobjectnn_takes_the_main_splits(recipes, run, tmp_path):
    names = [f'{split}_objectdataset_augmentedrot_scale75.h5' for split in ('training', 'test')]
    wanted = files('h5_files/main_split', names) | files('h5_files/main_split_nobg', names)
    (tmp_path / 'in').mkdir()
    arguments = ('scanobjectnn', '--root', tmp_path / 's', '--archives', tmp_path / 'in')
    status, said = run(*arguments)
    assert status == 2
    assert 'agree to the terms of use at https://hkust-vgd.github.io/scanobjectnn' in said
    assert not (tmp_path / 's').exists()
    write_zip(tmp_path / 'in/h5_files.zip', wanted | files('h5_files/split1', names))
    assert run(*arguments)[0] == 0
    assert data(tmp_path / 's') == wanted


@pytest.fixture
def published(recipes, server, tmp_path, monkeypatch):
    """Put the small COCO on the server, with its checksums in the recipe."""
    server.content, parts = {}, []
    for part in recipes['coco'].parts:
        (archive,) = part.archives
        content = write_zip(tmp_path / 'x.zip', COCO[archive.name]).read_bytes()
        server.content[f'/{archive.name}'] = content
        md5 = f'md5:{hashlib.md5(content).hexdigest()}'
        archive = replace(archive, url=f'{server.url}/{archive.name}', checksum=md5)
        parts.append(replace(part, archives=(archive,)))
    monkeypatch.setitem(recipes, 'coco', replace(recipes['coco'], parts=tuple(parts)))
    return server.content


def test_a_damaged_file_is_refused_until_it_is_whole(published, server, run, tmp_path):
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
def test_files_are_fetched_at_once(published, server, run, tmp_path, monkeypatch, jobs):
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
