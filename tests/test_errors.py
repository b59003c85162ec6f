"""Which exceptions are explained, and which keep their traceback."""

import pathlib
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader, Dataset

from coc_mm.errors import CheckpointError, UserError, _explain_config, explain, run_command
from coc_mm.models import ContextCluster


def _caught(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    raise AssertionError('nothing was raised')


def _build(scope='mmengine', **config):
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(config)


def test_checks_of_the_backbone_are_explained():
    assert explain(CheckpointError('c.pth is d')) == 'c.pth is d'
    error = _caught(_build, type='coc_mm.ContextCluster', arch='gigantic')
    assert explain(error).startswith(str(error))
    error = _caught(ContextCluster('tiny'), torch.zeros(1, 3, 16, 64))
    assert '16 x 64' in explain(error)


@pytest.mark.parametrize(
    'error',
    [
        ValueError('about something'),
        TypeError('f() got an unexpected keyword argument'),
        RuntimeError('shape mismatch'),
        OSError(5, 'Input/output error'),
    ],
)
def test_programming_errors_are_not_explained(error):
    def fail():
        raise error

    assert explain(_caught(fail)) is None


def test_an_error_while_handling_a_missing_file_is_not_explained():
    def fail():
        try:
            pathlib.Path('/no/such/file').read_text()
        except FileNotFoundError:
            return {}['key']

    assert explain(_caught(fail)) is None


def test_config_mistakes_are_explained():
    message = explain(_caught(_build, type='coc_mm.ContextCluster', depth=3))
    assert "unexpected keyword argument 'depth'" in message
    error = TypeError('no number in <a.B object at 0x7f>')
    assert _explain_config(error, str(error)).startswith('the config does not fit: no number\n')
    assert "type='coc_mm.Absent'" in explain(_caught(_build, type='coc_mm.Absent'))
    assert "type='Absent'" in explain(_caught(_build, type='Absent'))
    assert 'must contain the key "type"' in explain(_caught(_build, arch='tiny'))


def test_the_first_batch_fails_by_the_config_unless_other_code_does():
    """A loop of mmengine over a model whose innermost code is a library's, or a user's."""

    def raised(iteration, step):
        loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
        loop._iter = iteration
        model = SimpleNamespace(train_step=step)
        loop._runner = SimpleNamespace(
            model=model, call_hook=lambda *_, **__: None, optim_wrapper=None
        )
        return explain(_caught(loop.run_iter, 0, {}))

    def in_library(batch, optim_wrapper):
        pseudo_collate([])

    message = raised(0, in_library)
    assert message.startswith('the config does not fit: the first batch fails (mmengine/dataset/u')
    assert 'IndexError: list index' in message
    assert raised(1, in_library) is None
    assert raised(0, lambda batch, optim_wrapper: batch['gt']) is None


def test_missing_files_are_named(tmp_path):
    message = explain(_caught(open, tmp_path / 'absent.json'))
    assert message.startswith(f'{tmp_path / "absent.json"} does not exist.')
    assert 'looked for in' in explain(_caught(open, 'absent.json'))
    assert 'is a folder' in explain(_caught(open, tmp_path))


def test_a_full_disk_is_explained():
    message = explain(OSError(28, 'No space left on device', 'a.pth'))
    assert message.startswith('a.pth cannot be written (No space left on device)')
    assert '--resume' in message


class _Failing(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if callable(self.error):
            return self.error()
        raise self.error


def _from_worker(error):
    return _caught(lambda: next(iter(DataLoader(_Failing(error), num_workers=1))))


def test_messages_come_out_of_workers_whole():
    assert explain(_from_worker(UserError('x.png is bad;\nreplace it.'))) == (
        'x.png is bad;\nreplace it.'
    )
    message = explain(_from_worker(pathlib.Path('/no/such/image.png').read_bytes))
    assert message.startswith('/no/such/image.png does not exist.')
    message = explain(_from_worker(AssertionError('failed to load image: a/b.png')))
    assert message.startswith('a/b.png is not an image')
    assert explain(_from_worker(RuntimeError('a bug'))) is None


def test_run_command(capsys, monkeypatch):
    def raising(error):
        def command(argv):
            raise error

        return command

    monkeypatch.delenv('COC_MM_TRACEBACK', raising=False)
    assert run_command(lambda argv: None) == 0
    assert run_command(raising(UserError('no'))) == 2
    assert capsys.readouterr().err == 'error: no\n'
    assert run_command(raising(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))
    monkeypatch.setenv('COC_MM_TRACEBACK', '1')
    with pytest.raises(UserError):
        run_command(raising(UserError('no')))


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('DataLoader worker (pid 12) is killed by signal: Killed. ', 'pid 12) was killed (Killed)'),
        ('DataLoader worker (pid(s) 3, 4) exited unexpectedly', 'pid 3, 4) was killed, or ended'),
        ('[pair.cc] Timed out waiting 1800000ms for recv operation', 'waited 1800 s for another'),
        ('Read error [127.0.0.1]:1: Connection reset by peer', 'another process of this run'),
    ],
)
def test_what_torch_says_of_lost_processes_is_explained(text, says):
    message = explain(RuntimeError(text))
    assert says in message
    assert '--resume' in message


def test_an_operator_without_a_deterministic_version_is_named():
    torch.use_deterministic_algorithms(True)
    try:
        error = _caught(torch.zeros(3).put_, torch.tensor([0]), torch.tensor([1.0]))
    finally:
        torch.use_deterministic_algorithms(False)
    text = explain(error)
    assert text.startswith('--deterministic: the operator put_ has no deterministic version')
    assert 'randomness.deterministic=False' in text
