"""Atomic writing of files."""

import errno
import os

import pytest

from coc_mm.errors import CheckpointError, explain
from coc_mm.utils import atomic_io
from coc_mm.utils.atomic_io import atomic_write, check_writable, remove_partial_files


def _write(content, path, **options):
    with atomic_write(path, **options) as temporary:
        temporary.write_bytes(content)


@pytest.mark.parametrize('options', [{}, dict(sync=True), dict(suffix='.pth')])
def test_a_file_is_replaced_and_readable_by_others(tmp_path, options):
    path = tmp_path / 'new' / 'a.pth'
    _write(b'one', path, **options)
    with atomic_write(path, **options) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.startswith('.a.pth.')
        assert temporary.suffix == options.get('suffix', '.part')
        temporary.write_bytes(b'two')
        assert path.read_bytes() == b'one'
    assert path.read_bytes() == b'two'
    plain = tmp_path / 'plain'
    plain.write_bytes(b'')
    assert path.stat().st_mode == plain.stat().st_mode
    assert os.listdir(path.parent) == ['a.pth']


@pytest.mark.parametrize('fails', ['fsync', 'replace'])
@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, fails, error):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'old')

    def fail(*_):
        raise error(errno.ENOSPC, 'No space left')

    monkeypatch.setattr(atomic_io.os, fails, fail)
    with pytest.raises(error) as caught:
        _write(b'new', path, sync=True)
    if error is OSError:
        said = explain(caught.value)
        assert said.startswith(f'{path} cannot be written (No space left)')
        assert '--resume' in said
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['a.pth']


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / 'work').write_text('in the way')
    with pytest.raises(CheckpointError, match='--work-dir'):
        check_writable(tmp_path / 'work' / 'run')
    with pytest.raises(OSError, match='work'):
        _write(b'x', tmp_path / 'work' / 'a.pth')
    check_writable(tmp_path / 'fine' / 'run')
    assert os.listdir(tmp_path) == ['work']


def test_parts_of_killed_runs_are_removed_and_nothing_else(tmp_path):
    kept = ['epoch_1.pth', '.hidden', 'a.part', '.b.part', '.pth.1.party']
    for name in [*kept, '.epoch_2.pth.4711.part', '.last_checkpoint.1.part']:
        (tmp_path / name).touch()
    assert len(remove_partial_files(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    assert remove_partial_files(tmp_path / 'none') == []
