"""Archives whose members want out, or that end too early."""

import gzip
from functools import partial

import pytest
from small_sets import tree, write_tar, write_zip

from coc_mm.errors import PrepareError
from coc_mm.prepare import read_archive, unpack

FILES = {f'images/{i:03}.jpg': bytes([i]) * (1000 + i) for i in range(5)}
WRITERS = [write_zip, write_tar, partial(write_tar, mode='w:gz')]


@pytest.fixture(params=[write_zip, write_tar])
def write(request):
    return request.param


def extract(path, root, **kwargs):
    return unpack(read_archive(path), root, path, **kwargs)


@pytest.mark.parametrize('write', WRITERS)
def test_files_arrive(write, tmp_path):
    listing = extract(write(tmp_path / 'a', FILES), tmp_path / 'root')
    assert tree(tmp_path / 'root') == FILES
    assert listing == {name: len(content) for name, content in FILES.items()}


def _refused(path, root, *says):
    with pytest.raises(PrepareError) as caught:
        extract(path, root)
    for part in says:
        assert part in str(caught.value)
    assert tree(root) == {}, 'something is left behind'


def test_names_that_climb_out_are_refused(write, tmp_path):
    path = write(tmp_path / 'a', {**FILES, 'images/../../out.jpg': b'evil'})
    _refused(path, tmp_path / 'root', 'outside', str(path))
    assert not list(tmp_path.rglob('out.jpg'))


@pytest.mark.parametrize('write', WRITERS)
def test_truncated_archives_are_named(write, tmp_path):
    path = write(tmp_path / 'a', FILES)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4 + 100])
    _refused(path, tmp_path / 'root', str(path), 'damaged')


def test_what_is_no_archive_is_named(tmp_path):
    path = tmp_path / 'a.tar.gz'
    path.write_bytes(gzip.compress(b'not a tar' * 100))
    _refused(path, tmp_path / 'root', str(path), 'no such archive')


def test_only_what_is_missing_is_written(write, tmp_path):
    root = tmp_path / 'root'
    path = write(tmp_path / 'a', FILES)
    extract(path, root)
    (root / 'images/own.txt').write_text('of the user')
    (root / 'images/001.jpg').unlink()
    (root / 'images/002.jpg').write_bytes(b'cut')
    kept = (root / 'images/003.jpg').stat().st_ino
    extract(path, root)
    assert tree(root) == {**FILES, 'images/own.txt': b'of the user'}
    assert (root / 'images/003.jpg').stat().st_ino == kept


def test_a_folder_appears_at_once(tmp_path):
    root, seen = tmp_path / 'root', []
    stale = root / '.unpacking/images/000.jpg'  # of a run that was killed
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b'half')
    path = write_zip(tmp_path / 'a', FILES)
    extract(path, root, on_bytes=lambda count: seen.append((root / 'images').exists()))
    assert len(seen) == len(FILES)
    assert not any(seen)
    assert tree(root) == FILES
