"""The demo as a server: many requests at once, a third of them bad, and what is left of them."""

import os
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import pytest

pytest.importorskip('gradio', reason='the demo needs gradio: pip install "coc-mm[demo]"')
pytest.importorskip('mmpretrain')
import numpy as np
from cluster_demo.checks import RefusedError, file_inside, read_json
from cluster_demo.desk import Choice, Desk
from cluster_demo.engine import Engine
from cluster_demo.janitor import Janitor
from load_bad import bad_requests
from load_client import good_images
from load_test import Load, Outcome, Report, run_load

from coc_mm.errors import UserError

LINUX = pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='asks /proc for memory')
GOOD = 10  # beside one of every bad kind


@LINUX
def test_many_requests_at_once_most_of_them_bad(server, megabytes):
    kinds = set(bad_requests(megabytes))
    share = len(kinds) / (len(kinds) + GOOD)
    load = Load(server, 'small/epoch_10.pth', megabytes, settle=20, calm=7, share_bad=share)
    (wave,) = run_load(load, len(kinds) + GOOD)
    assert wave.problems == []
    assert len(wave.of(good=True)) == GOOD
    assert {x.kind for x in wave.of(good=False)} == kinds
    assert len(kinds) > 60
    assert len(load.expected) == len(set(load.expected.values())) == 6


def test_the_load_test_notices_what_is_wrong():
    """A server that answers wrongly, keeps files and grows is not called sound."""
    wave = Outcome([Report('good'), Report('bomb', 'status 500')], 1, 100, 111, 2)
    assert len(wave.problems) == 3
    wave.after, wave.files = 110, 0
    assert wave.problems == ['bomb: status 500']
    row = wave.row()
    assert (row['good_as_expected'], row['bad'], row['bad_as_expected']) == (1, 1, 0)


@pytest.fixture
def desk(sources, tmp_path):
    return Desk(Engine([sources['small']]), tmp_path / 'uploads' / 'shown')


def upload(desk, content, name):
    path = desk.uploads / name / 'image.png'
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_idle_visitors_and_stale_files_go(desk):
    images = good_images(3)
    paths = [upload(desk, image, f'visitor{i}') for i, image in enumerate(images)]
    tokens = [desk.receive(f'visitor{i}', path)[0] for i, path in enumerate(paths[:2])]
    choice = Choice(desk.engine.labels[0], None, 0, 0, 0)
    shown = [desk.show(token, 'a', choice, 0.5) for token in tokens]
    (desk.uploads / 'examples').mkdir()
    (desk.uploads / 'examples' / 'x.png').write_bytes(images[0])
    (desk.uploads / 'half').write_bytes(b'x')
    (desk.uploads / 'link').symlink_to('/etc/hosts')
    page = SimpleNamespace(temp_file_sets=[{str(paths[0]), str(desk.uploads / 'gone')}])
    janitor = Janitor(desk, page, keep=1000)
    janitor.tidy()
    assert all(path.exists() for path in paths)  # too early
    assert page.temp_file_sets == [{str(paths[0])}]
    desk._seen[tokens[0]] -= 1001
    janitor.tidy()
    assert not paths[0].exists()
    assert not shown[0].overlay.exists()
    assert not desk.engine.has(tokens[0])
    assert desk.engine.has(tokens[1])
    # Files that nobody holds are a question of their age, those of visitors are not.
    janitor._delete_stale(before=time.time() + 1)
    assert paths[1].exists()
    assert shown[1].overlay.exists()
    left = {path.name for path in desk.uploads.iterdir()}
    assert left == {'examples', 'visitor1', 'shown'}
    assert (desk.uploads / 'examples' / 'x.png').exists()


def test_tidying_goes_on_while_folders_vanish(desk, monkeypatch):
    """Visitors who leave delete their own folders, and nothing ends the thread."""
    paths = [upload(desk, b'x', f'visitor{i}') for i in range(3)]
    scan, vanished = os.scandir, []

    def vanishing(folder):
        if str(folder).endswith('visitor1') and not vanished:
            vanished.append(folder)
            shutil.rmtree(folder)
        return scan(folder)

    monkeypatch.setattr(os, 'scandir', vanishing)
    page = SimpleNamespace(temp_file_sets=[])
    janitor = Janitor(desk, page, keep=1000)
    janitor._delete_stale(before=time.time() + 1)
    assert vanished
    assert not any(path.parent.exists() for path in paths)

    calls = []

    def fail():
        calls.append(None)
        raise OSError('no such folder') if len(calls) < 3 else SystemExit  # which ends a thread

    monkeypatch.setattr(janitor, 'tidy', fail)
    monkeypatch.setattr('cluster_demo.janitor.time', SimpleNamespace(sleep=lambda seconds: None))
    janitor.start()
    janitor.join(30)
    assert len(calls) == 3


def test_pictures_for_a_visitor_who_left_do_not_stay(desk, monkeypatch):
    token, _ = desk.receive('visitor', upload(desk, good_images(1)[0], 'one'))
    save = desk._save

    def leave_and_save(path, picture):
        desk.leave('visitor')
        return save(path, picture)

    monkeypatch.setattr(Desk, '_save', staticmethod(leave_and_save))
    with pytest.raises(UserError, match='no longer in memory'):
        desk.show(token, 'a', Choice(desk.engine.labels[0], None, 0, 0, 0), 0.5)
    assert not (desk.folder / token).exists()


def test_models_run_in_threads_of_their_own(sources, monkeypatch):
    engine = Engine([sources['small']], workers=2)
    names, run = set(), engine._run

    def note(*arguments):
        names.add(threading.current_thread().name)
        return run(*arguments)

    monkeypatch.setattr(engine, '_run', note)
    image = np.zeros((64, 64, 3), np.uint8)
    tokens = [engine.keep(image) for _ in range(6)]
    label = engine.labels[0]
    askers = [threading.Thread(target=engine.look, args=(token, label)) for token in tokens]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(engine._looks) == 6
    assert names <= {'model_0', 'model_1'}
    assert names


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


@pytest.mark.parametrize('body', [b'', b'[]', b'{', b'\xff\xfe', b'[' * 50_000, b'1'])
def test_bodies_that_are_no_objects(body):
    with pytest.raises(RefusedError, match='not') as refused:
        read_json(body)
    assert refused.value.status == 400


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_other_file_can_be_read(server, checkpoints):
    asked = [
        checkpoints / 'small' / 'epoch_2.pth',
        server.place / 'log',
        '/etc/passwd',
        f'{server.temporary}/../log',
    ]
    for path in asked:
        url = f'{server.url}gradio_api/file={urllib.parse.quote(str(path))}'
        assert status_of(url) in (403, 404), path
    assert len(asked) == 4
    assert status_of(server.url) == 200


def test_nothing_is_left_when_it_stops(server):
    """Runs last: it ends the server."""
    (folder,) = server.temporary.glob('coc_mm_demo_*')
    assert server.files() == []  # its visitors have left
    assert any(folder.rglob('examples/*'))
    assert 'Traceback' not in server.log.read_text()
    server.process.terminate()
    server.process.wait(60)
    assert not list(server.temporary.glob('coc_mm_demo_*'))
