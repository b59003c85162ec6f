"""Downloads from a server that drops connections, lies and breaks."""

import hashlib
import threading

import pytest
from download_server import CONTENT, MD5, serve

from coc_mm.errors import DownloadError
from coc_mm.utils.download import download, verify_checksum


@pytest.fixture
def server(monkeypatch):
    with serve(monkeypatch) as behaviour:
        yield behaviour


def get(server, path, **kwargs):
    kwargs = dict(checksum=MD5, pause=0, tries=3) | kwargs
    download(f'{server.url}/a.zip', path, **kwargs)


def ranges(server):
    return [asked for _, asked in server.requests]


def test_a_file_arrives_whole_with_progress(server, tmp_path):
    seen = []
    get(server, tmp_path / 'a.zip', on_bytes=lambda done, total: seen.append((done, total)))
    assert (tmp_path / 'a.zip').read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.zip']


def test_dropped_connections_are_taken_up_where_they_broke(server, tmp_path):
    server.status = [503, 429]
    server.drops = [100_000, 50_000, 0, 0, 1]  # two in a row bring nothing: fewer than 3
    get(server, tmp_path / 'a.zip')
    assert (tmp_path / 'a.zip').read_bytes() == CONTENT
    assert ranges(server)[2:] == [None, 'bytes=100000-', *['bytes=150000-'] * 3, 'bytes=150001-']


def test_a_run_killed_before_the_last_rename_downloads_nothing_again(server, tmp_path):
    server.drops = [len(CONTENT) - 1, 0, 0, 0]
    with pytest.raises(DownloadError, match='gave up after 3 attempts'):
        get(server, tmp_path / 'a.zip')
    assert not (tmp_path / 'a.zip').exists()
    with (tmp_path / 'a.zip.part').open('ab') as file:
        file.write(CONTENT[-1:])
    server.requests.clear()
    get(server, tmp_path / 'a.zip')
    assert (tmp_path / 'a.zip').read_bytes() == CONTENT
    assert ranges(server) == [f'bytes={len(CONTENT)}-']


def test_a_server_without_ranges_is_asked_anew(server, tmp_path):
    server.ranges, server.drops = False, [100_000, 90_000]
    get(server, tmp_path / 'a.zip')
    assert (tmp_path / 'a.zip').read_bytes() == CONTENT
    server.requests.clear()
    server.drops = [1000] * 9
    with pytest.raises(DownloadError, match='gave up'):
        get(server, tmp_path / 'b.zip')
    assert len(server.requests) == 4  # three never came beyond the first 1000 bytes


def test_damage_is_refused_and_not_kept(server, tmp_path):
    server.content = CONTENT[:-1] + b'x'
    with pytest.raises(DownloadError, match=r'md5 is .* published is'):
        get(server, tmp_path / 'a.zip')
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_what_was_pieced_together_wrongly_is_fetched_anew_once(server, tmp_path):
    server.drops = [100_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        get(server, tmp_path / 'a.zip')
    (tmp_path / 'a.zip.part').write_bytes(bytes(100_000))
    get(server, tmp_path / 'a.zip')
    assert (tmp_path / 'a.zip').read_bytes() == CONTENT
    assert ranges(server)[-2:] == ['bytes=100000-', None]


def test_answers_that_will_not_get_better_are_said_at_once(server, tmp_path):
    server.status = [404]
    with pytest.raises(DownloadError, match=r'a\.zip: HTTP 404, .*no such file'):
        get(server, tmp_path / 'a.zip')
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_login_page_is_no_archive(server, tmp_path):
    server.content = b'\n<!DOCTYPE html><title>Sign in</title>'
    with pytest.raises(DownloadError, match='web page'):
        get(server, tmp_path / 'a.zip', checksum=None)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(DownloadError, match=r'gave up.*refused'):
        download('http://127.0.0.1:9/a.zip', tmp_path / 'a.zip', tries=2, pause=0)
    with pytest.raises(DownloadError, match='only http'):
        download('file:///etc/passwd', tmp_path / 'a.zip')


def test_a_download_can_be_stopped(server, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(DownloadError, match='stopped'):
        get(server, tmp_path / 'a.zip', stop=stop)


def test_checksums_of_both_kinds(tmp_path):
    (tmp_path / 'a').write_bytes(CONTENT)
    verify_checksum(tmp_path / 'a', MD5)
    verify_checksum(tmp_path / 'a', f'sha1:{hashlib.sha1(CONTENT).hexdigest()}')
    verify_checksum(tmp_path / 'a', None)
    with pytest.raises(DownloadError, match='--skip-checksum'):
        verify_checksum(tmp_path / 'a', 'sha1:' + '0' * 40)
