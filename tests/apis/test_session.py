"""What a run does to the process and its folders."""

from pathlib import Path

import pytest
import torch

from coc_mm.apis import session
from coc_mm.errors import UserError


@pytest.fixture(autouse=True)
def _first_process(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)


def _run_that_fails(work, error, *files):
    with session._leaving_nothing_behind(Path(work), 'c.py'):
        for name in files:
            path = Path(work, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        raise error


def test_a_mistake_takes_back_folders_that_it_made():
    Path('there').mkdir()
    with pytest.raises(UserError):
        _run_that_fails('there/a/b', UserError('no'), '2026/run.log', 'c.py')
    assert list(Path('there').iterdir()) == []


def test_bugs_and_checkpoints_stay():
    with pytest.raises(RuntimeError):
        _run_that_fails('bug', RuntimeError('bug'), '2026/run.log')
    assert Path('bug/2026/run.log').exists()
    with pytest.raises(UserError):
        _run_that_fails('late', UserError('no'), '2026/run.log', 'epoch_1.pth')
    assert Path('late/2026/run.log').exists()


def test_other_processes_of_a_run_remove_nothing(monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(UserError):
        _run_that_fails('work', UserError('no'), 'run.log')
    assert Path('work/run.log').exists()


def test_the_process_is_given_back_as_it_was():
    with session._restoring_determinism():
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
