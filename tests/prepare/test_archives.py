"""Archives that want out, blow up, or end too early."""

import gzip
import io
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from coc_mm.prepare import Limits, PrepareError, read_tar, read_zip, unpack

LIMITS = Limits(10_000_000, 100)
FILES = {f'images/{i:03}.jpg': bytes([i]) * (1000 + i) for i in range(5)}


def write_zip(path, files, **attributes):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of duplicate names
        with zipfile.ZipFile(path, 'w') as archive:
            for name, content in files if isinstance(files, list) else files.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                for key, value in attributes.items():
                    setattr(info, key, value)
                archive.writestr(info, content)
    return path


def write_tar(path, files, mode='w', **attributes):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return path


def tree(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in Path(root).rglob('*')
        if path.is_file()
    }


KINDS = {'zip': (write_zip, read_zip), 'tar': (write_tar, read_tar)}


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    return KINDS[request.param]


def test_files_arrive_and_junk_does_not(kind, tmp_path):
    write, read = kind
    junk = {'__MACOSX/images/._000.jpg': b'x', 'images/.DS_Store': b'x'}
    path = write(tmp_path / 'a', {**FILES, **junk})
    listing = unpack(read(path, LIMITS), tmp_path / 'root')
    assert tree(tmp_path / 'root') == FILES
    assert listing == {name: len(content) for name, content in FILES.items()}


def test_compressed_tars_are_read(tmp_path):
    path = write_tar(tmp_path / 'a.tar.gz', FILES, 'w:gz')
    unpack(read_tar(path, LIMITS), tmp_path / 'root')
    assert tree(tmp_path / 'root') == FILES


def _refused(entries, root, *says):
    with pytest.raises(PrepareError) as caught:
        unpack(entries, root)
    for part in says:
        assert part in str(caught.value)
    assert tree(root) == {}, 'something is left behind'


@pytest.mark.parametrize(
    'name', ['../out.jpg', 'images/../../out.jpg', '/etc/out.jpg', 'C:out.jpg', '..\\out.jpg']
)
def test_names_that_climb_out_are_refused(kind, tmp_path, name):
    write, read = kind
    path = write(tmp_path / 'a', {**FILES, name: b'evil'})
    _refused(read(path, LIMITS), tmp_path / 'root', 'outside', str(path))
    assert not list(tmp_path.rglob('out.jpg'))


@pytest.mark.parametrize(
    'kind_of_member', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind_of_member):
    path = write_tar(tmp_path / 'a', {'images/l': b''}, type=kind_of_member, linkname='/etc/passwd')
    _refused(read_tar(path, LIMITS), tmp_path / 'root', 'link or a device')


def test_links_in_a_zip_are_refused(tmp_path):
    path = write_zip(
        tmp_path / 'a', {'images/l': b'/etc'}, create_system=3, external_attr=stat.S_IFLNK << 16
    )
    _refused(read_zip(path, LIMITS), tmp_path / 'root', 'link or a device')


def test_names_twice_are_refused(tmp_path):
    path = write_zip(tmp_path / 'a', [('images/a.jpg', b'1'), ('images/A.jpg', b'2')])
    _refused(read_zip(path, LIMITS), tmp_path / 'root', 'twice')


def test_bombs_are_refused_before_they_go_off(kind, tmp_path):
    write, read = kind
    path = write(tmp_path / 'a', {'images/zeros': bytes(3_000_000)})
    _refused(read(path, Limits(2_000_000, 100)), tmp_path / 'root', 'more than the 0.0 GB')
    path = write(tmp_path / 'b', {f'images/{i}': b'' for i in range(11)})
    _refused(read(path, Limits(2_000_000, 10)), tmp_path / 'root', 'more than 10 members')


def test_truncated_archives_are_named(kind, tmp_path):
    write, read = kind
    path = write(tmp_path / 'a', FILES)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4 + 100])
    _refused(read(path, LIMITS), tmp_path / 'root', str(path), 'damaged')


def test_a_truncated_gzip_is_named(tmp_path):
    path = write_tar(tmp_path / 'a.tar.gz', FILES, 'w:gz')
    path.write_bytes(path.read_bytes()[:-40])
    _refused(read_tar(path, LIMITS), tmp_path / 'root', str(path), 'damaged')
    path.write_bytes(gzip.compress(b'not a tar' * 100))
    _refused(read_tar(path, LIMITS), tmp_path / 'root', str(path), 'no such archive')


def test_a_flipped_byte_in_a_zip_is_found(tmp_path):
    path = write_zip(tmp_path / 'a', {'images/a.jpg': bytes(range(256)) * 40})
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    _refused(read_zip(path, LIMITS), tmp_path / 'root', str(path), 'damaged')


def test_only_what_is_missing_is_written(kind, tmp_path):
    write, read = kind
    root = tmp_path / 'root'
    path = write(tmp_path / 'a', FILES)
    unpack(read(path, LIMITS), root)
    (root / 'images/own.txt').write_text('of the user')
    (root / 'images/001.jpg').unlink()
    (root / 'images/002.jpg').write_bytes(b'cut')
    kept = (root / 'images/003.jpg').stat().st_ino
    unpack(read(path, LIMITS), root)
    assert tree(root) == {**FILES, 'images/own.txt': b'of the user'}
    assert (root / 'images/003.jpg').stat().st_ino == kept


def test_a_run_that_was_killed_leaves_nothing_that_matters(tmp_path):
    root = tmp_path / 'root'
    stale = root / '.unpacking/images'
    stale.mkdir(parents=True)
    (stale / '000.jpg').write_bytes(b'half')
    unpack(read_zip(write_zip(tmp_path / 'a', FILES), LIMITS), root)
    assert tree(root) == FILES
    assert not (root / '.unpacking').exists()


def test_a_folder_appears_at_once(tmp_path):
    root = tmp_path / 'root'
    seen = []
    entries = read_zip(write_zip(tmp_path / 'a', FILES), LIMITS)
    unpack(entries, root, on_bytes=lambda count: seen.append((root / 'images').exists()))
    assert len(seen) == len(FILES)
    assert not any(seen)
    assert (root / 'images').exists()
