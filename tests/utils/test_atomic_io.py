import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch

from coc_mm.errors import CheckpointError, explain
from coc_mm.utils import atomic_io as whole_files
from coc_mm.utils.atomic_io import (
    check_writable,
    explaining_full_disks,
    remove_partial_files,
    use_whole_files,
    write_whole,
)


def _nothing_partial(folder):
    return not [name for name in os.listdir(folder) if name.endswith('.part')]


def test_a_file_is_replaced_and_readable_by_others(tmp_path):
    path = tmp_path / 'new' / 'a.pth'
    write_whole(b'one', path)
    write_whole(b'two', path)
    assert path.read_bytes() == b'two'
    plain = tmp_path / 'plain'
    plain.write_bytes(b'')
    assert path.stat().st_mode == plain.stat().st_mode
    assert _nothing_partial(path.parent)


@pytest.mark.parametrize('fails', ['fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, fails):
    path = tmp_path / 'a.pth'
    write_whole(b'old', path)

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole_files.os, fails, refuse)
    with pytest.raises(
        CheckpointError, match=r'a\.pth cannot be written \(No space left'
    ) as caught:
        write_whole(b'new', path)
    assert '--resume' in explain(caught.value)
    assert path.read_bytes() == b'old'
    assert _nothing_partial(tmp_path)


def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    write_whole(b'old', path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_files.os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(b'new', path)
    assert path.read_bytes() == b'old'
    assert _nothing_partial(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB, where the system lets us mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('mounting is for root')
    yield folder
    subprocess.run(['umount', folder], check=True)


def test_a_disk_that_is_full(small_disk):
    write_whole(b'old' * 1000, small_disk / 'a.pth')
    with pytest.raises(CheckpointError, match='No space left on device'):
        write_whole(bytes(100_000), small_disk / 'a.pth')
    assert (small_disk / 'a.pth').read_bytes() == b'old' * 1000
    assert os.listdir(small_disk) == ['a.pth']
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    with pytest.raises(CheckpointError, match=r'cannot be written to \(Read-only.*--work-dir'):
        check_writable(small_disk)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / 'work').write_text('in the way')
    with pytest.raises(CheckpointError, match='--work-dir'):
        check_writable(tmp_path / 'work' / 'run')
    with pytest.raises(CheckpointError, match='cannot be written'):
        write_whole(b'x', tmp_path / 'work' / 'a.pth')
    check_writable(tmp_path / 'fine' / 'run')
    assert os.listdir(tmp_path / 'fine' / 'run') == []


def test_parts_of_killed_runs_are_removed_and_nothing_else(tmp_path):
    kept = ['epoch_1.pth', '.hidden', 'a.part', '.b.part', '.pth.1.party']
    for name in [*kept, '.epoch_2.pth.4711.part', '.last_checkpoint.1.part']:
        (tmp_path / name).touch()
    assert len(remove_partial_files(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    assert remove_partial_files(tmp_path / 'none') == []


def test_mmengine_writes_through_us(tmp_path, monkeypatch):
    from mmengine.fileio.backends import registry_utils
    from mmengine.runner import save_checkpoint

    monkeypatch.setattr(registry_utils, 'backends', dict(registry_utils.backends))
    prefixes = dict(registry_utils.prefix_to_backends)
    use_whole_files()
    written = []
    monkeypatch.setattr(
        whole_files, 'write_whole', lambda content, path, sync: written.append((path, sync))
    )
    try:
        save_checkpoint(dict(state_dict=dict(a=torch.ones(1))), str(tmp_path / 'a.pth'))
    finally:
        registry_utils.prefix_to_backends.update(prefixes)
    assert written == [(str(tmp_path / 'a.pth'), True)]


def test_other_failures_to_write_are_explained(tmp_path):
    full = OSError(errno.ENOSPC, 'No space left on device', str(tmp_path / 'log.json'))
    said = r'log\.json cannot be written'
    with pytest.raises(CheckpointError, match=said), explaining_full_disks(tmp_path):
        raise full
    with pytest.raises(FileNotFoundError), explaining_full_disks(tmp_path):
        Path(tmp_path / 'gone').read_text()
