"""What stands for images on a command line, and how its results are named."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from coc_mm.apis.sources import find_sources, read_sources
from coc_mm.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ('a/1.png', 'b/1.png', 'b/[x].jpg', 'b/deep/2.png'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((40, 50, 3), 90, np.uint8))
    (tmp_path / 'b' / 'notes.txt').write_text('no image')
    return tmp_path


def video(path, count=3):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 10, (64, 48))
    for i in range(count):
        writer.write(np.full((48, 64, 3), 50 * i, np.uint8))
    writer.release()
    return str(path)


@pytest.mark.parametrize(
    ('items', 'found'),
    [
        (['a'], ['a/1.png']),
        (['a', 'b', 'a/1.png'], ['a/1.png', 'b/1.png', 'b/[x].jpg', 'b/deep/2.png']),
        (['b/[x].jpg'], ['b/[x].jpg']),  # a file before a pattern
        (['*/1.png'], ['a/1.png', 'b/1.png']),
        (['**/2.*'], ['b/deep/2.png']),
        (['0', 'http://x/y.png'], ['0', 'http://x/y.png']),
    ],
)
def test_files_folders_and_globs(items, found, folder):
    given = [x if x == '0' or '://' in x else str(folder / x) for x in items]
    got = [x.removeprefix(f'{folder}/') for x in find_sources(given)]
    assert got == found


def test_what_is_not_there(folder):
    for item, says in {'none.png': 'does not exist', '*.tif': 'nothing matches'}.items():
        with pytest.raises(UserError, match=says):
            find_sources([str(folder / item)])


def test_names_keep_folders(folder):
    names = [x.name for x in read_sources(find_sources([str(folder / 'a'), str(folder / 'b')]))]
    assert names == ['a/1.png', 'b/1.png', 'b/[x].jpg', 'b/deep/2.png']
    assert [x.name for x in read_sources([str(folder / 'b' / '1.png')])] == ['1.png']


def test_frames_of_a_video_and_a_camera(tmp_path, monkeypatch):
    clip = video(tmp_path / 'clip.mp4')
    frames = list(read_sources(find_sources([clip])))
    assert [x.name for x in frames] == [f'clip/00000{i}.jpg' for i in range(3)]
    assert {(x.video, x.fps, x.content.shape) for x in frames} == {('clip', 10, (48, 64, 3))}
    opened, real = [], cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', lambda what: opened.append(what) or real(clip))
    assert next(read_sources(['1'])).video == 'camera1'
    assert opened == [1]
    monkeypatch.undo()
    Path(clip).write_bytes(b'no video')
    with pytest.raises(UserError, match='gives no frames'):
        list(read_sources([clip]))


def test_urls_are_downloaded(folder):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (picture,) = read_sources([f'http://127.0.0.1:{server.server_port}/a/1.png?size=3'])
        server.shutdown()
    assert picture.name == '1.png'
    assert not Path(picture.content).exists()  # gone with the last picture
