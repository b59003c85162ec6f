"""What a run does to the process and its folders."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ('count', 'settings', 'says'),
    [
        (3, dict(batch_size=4, drop_last=True), 'batch_size=3 or less'),
        (0, dict(batch_size=1), 'has no images'),
        (3, dict(batch_size=4), None),
    ],
)
def test_a_loader_without_a_batch_is_refused(count, settings, says):
    data = torch.utils.data.TensorDataset(torch.zeros(count, 1))
    loader = torch.utils.data.DataLoader(data, **settings)
    given = dict(batch_size=4)
    runner = SimpleNamespace(build_dataloader=lambda given, seed: loader, _val_dataloader=given)
    session._check_loaders(runner)
    assert runner.build_dataloader({}, seed=1) is loader  # of nobody's
    context = pytest.raises(UserError, match=says) if says else contextlib.nullcontext()
    with context:
        runner.build_dataloader(given, seed=1)
