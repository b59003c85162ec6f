"""Which exceptions are explained, and which keep their traceback."""

import errno
import pathlib

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch.utils.data import DataLoader, Dataset

from coc_mm.errors import CheckpointError, UserError, explain, run_command
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


def test_errors_for_the_user_are_their_own_text():
    assert explain(UserError('a: b')) == 'a: b'
    assert explain(CheckpointError('c.pth is d')) == 'c.pth is d'


def test_checks_of_the_backbone_are_explained():
    error = _caught(ContextCluster, arch='gigantic')
    assert 'gigantic' in explain(error)
    error = _caught(_build, type='coc_mm.ContextCluster', arch='gigantic')
    assert explain(error).startswith(str(error))
    error = _caught(ContextCluster('tiny'), torch.zeros(1, 3, 16, 64))
    assert '16 x 64' in explain(error)


def test_checks_are_found_behind_the_registry_of_older_mmengine():
    scope = {'ContextCluster': ContextCluster, '__name__': 'mmengine.registry.build_functions'}
    source = (
        'def build(**kwargs):\n'
        '    try:\n'
        '        ContextCluster(**kwargs)\n'
        '    except Exception as error:\n'
        "        raise type(error)(f'class `ContextCluster` in coc_mm/models/a.py: {error}')\n"
    )
    exec(source, scope)
    message = explain(_caught(scope['build'], arch='gigantic'))
    assert 'gigantic' in message
    assert 'class `' not in message


def test_a_full_disk_is_explained():
    message = explain(OSError(errno.ENOSPC, 'No space left on device', 'a.pth'))
    assert 'No space left' in message
    assert '--resume' in message


@pytest.mark.parametrize(
    'error',
    [
        ValueError('about something'),
        KeyError('name'),
        TypeError('f() got an unexpected keyword argument'),
        RuntimeError('shape mismatch'),
        AssertionError('inside'),
        AttributeError('x'),
        OSError(5, 'Input/output error'),
        UnicodeDecodeError('utf-8', b'', 0, 1, 'reason'),
    ],
)
def test_programming_errors_are_not_explained(error):
    def fail():
        raise error

    assert explain(_caught(fail)) is None


def test_accidents_inside_our_models_are_not_explained():
    scope = {'__name__': 'coc_mm.models.example'}
    exec("def accident():\n    a, b = 'abc'\n", scope)
    error = _caught(scope['accident'])
    assert isinstance(error, ValueError)
    assert explain(error) is None


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
    assert "type='coc_mm.Absent'" in explain(_caught(_build, type='coc_mm.Absent'))
    assert "type='Absent'" in explain(_caught(_build, type='Absent'))
    assert 'must contain the key "type"' in explain(_caught(_build, arch='tiny'))


def test_missing_files_are_named(tmp_path):
    message = explain(_caught(open, tmp_path / 'absent.json'))
    assert message.startswith(f'{tmp_path / "absent.json"} does not exist.')
    assert 'looked for in' in explain(_caught(open, 'absent.json'))
    assert 'is a folder' in explain(_caught(open, tmp_path))


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
