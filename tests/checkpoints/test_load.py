import argparse
import collections
import functools
import http.server
import io
import os
import pathlib
import pickle
import sys
import threading

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as checkpoint_module

from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of, use_safe_loading
from coc_mm.errors import CheckpointError


@pytest.fixture
def safe_mmengine(monkeypatch):
    """Register the safe loaders, and take them back."""
    for name in ('load_from_http', '_safe_torch_load'):
        monkeypatch.setattr(checkpoint_module, name, getattr(checkpoint_module, name, None))
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    use_safe_loading()


class _Call:
    """Pickled as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _saved(folder, content, **kwargs):
    path = folder / 'checkpoint.pth'
    torch.save(content, path, **kwargs)
    return path


def _runner_checkpoint():
    hub = MessageHub('test_io')
    for value in (3.0, 2.0, 1.0):
        hub.update_scalar('train/loss', value)
    hub.update_info('best_score', np.float64(0.5))
    hub.update_info('dataset_meta', dict(classes=('a', 'b'), palette=np.eye(3, dtype=np.uint8)))
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    return dict(
        meta=dict(epoch=3, iter=7, cfg='model = dict()', seed=np.int64(4)),
        state_dict=collections.OrderedDict(weight=weight.detach()),
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
        param_schedulers=[dict(last_step=7, base_values=[np.float32(0.1)])],
    )


@pytest.mark.parametrize('zipped', [True, False])
def test_runner_checkpoint_is_read_in_full(tmp_path, zipped):
    expected = _runner_checkpoint()
    path = _saved(tmp_path, expected, _use_new_zipfile_serialization=zipped)
    found = load_checkpoint_safely(path)
    assert torch.equal(found['state_dict']['weight'], expected['state_dict']['weight'])
    assert found['meta'] == expected['meta']
    history = found['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert (history.mean(), history.current(), history.statistics('min')) == (2.0, 1.0, 1.0)
    info = found['message_hub']['runtime_info']
    assert info['best_score'] == 0.5
    np.testing.assert_array_equal(info['dataset_meta']['palette'], np.eye(3))
    assert found['param_schedulers'][0]['base_values'] == [np.float32(0.1)]
    moment = found['optimizer']['state'][0]['exp_avg']
    assert torch.equal(moment, expected['optimizer']['state'][0]['exp_avg'])


def test_archive_of_timm_is_read(tmp_path):
    options = argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath('/out'), betas=(0.9, 0.99))
    content = dict(arch='coc', epoch=3, args=options, state_dict={})
    found = load_checkpoint_safely(_saved(tmp_path, content))
    assert found['args'] == options


@pytest.mark.parametrize('code', '?bBhHiIlLqQefd')
def test_arrays_of_every_type_are_read(tmp_path, code):
    array = np.arange(4).reshape(2, 2).astype(code)
    found = load_checkpoint_safely(_saved(tmp_path, dict(array=array, scalar=array[1, 1])))
    np.testing.assert_array_equal(found['array'], array)
    assert found['array'].dtype == array.dtype
    assert found['scalar'] == array[1, 1]


def test_checkpoints_of_either_numpy_are_read(tmp_path):
    # numpy 2 renamed the module of the functions that rebuild arrays.
    ours = b'numpy._core.multiarray' if hasattr(np, '_core') else b'numpy.core.multiarray'
    content = pickle.dumps(dict(array=np.arange(3), scalar=np.float64(2.5)), protocol=2)
    for module in (b'numpy._core.multiarray', b'numpy.core.multiarray'):
        path = tmp_path / 'other.pth'
        torch.save({}, path, _use_new_zipfile_serialization=False)
        head = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
        head += pickle.dumps(1001, protocol=2) + pickle.dumps({}, protocol=2)
        path.write_bytes(head + content.replace(ours, module) + pickle.dumps([], protocol=2))
        found = load_checkpoint_safely(path)
        np.testing.assert_array_equal(found['array'], np.arange(3))
        assert found['scalar'] == 2.5


def test_other_objects_are_refused_with_the_reason(tmp_path):
    content = dict(groups=collections.defaultdict(list, a=[1]))
    with pytest.raises(CheckpointError, match=r'refused: it holds .*defaultdict'):
        load_checkpoint_safely(_saved(tmp_path, content))


ATTACKS = {
    'command': (os.system, 'touch RUN'),
    'folder': (os.mkdir, 'RUN'),
    'evaluate': (eval, "open('RUN', 'w')"),
    'attribute': (getattr, HistoryBuffer, '__init__'),
    'another attribute': (getattr, np.ndarray, 'tofile'),
    'partial': (functools.partial, print, 'RUN'),
    'import': (__import__, 'antigravity'),
}


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('zipped', [True, False])
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, name, zipped):
    monkeypatch.chdir(tmp_path)
    content = dict(state_dict=dict(a=torch.ones(1)), x=_Call(*ATTACKS[name]))
    path = _saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r'checkpoint\.pth is refused: it holds .*not weights and may'
    ):
        load_checkpoint_safely(path)
    assert not os.path.exists('RUN')


@pytest.fixture
def allowed():
    """Give the names that torch allows at present, and restore them."""
    names = set(torch.serialization.get_safe_globals())
    yield lambda: set(torch.serialization.get_safe_globals())
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(names))


def test_what_a_program_allows_elsewhere_is_refused_here(tmp_path, allowed):
    path = _saved(tmp_path, dict(x=_Call(os.mkdir, str(tmp_path / 'RUN'))))
    torch.serialization.add_safe_globals([os.mkdir])
    before = allowed()
    with pytest.raises(CheckpointError, match='mkdir'):
        load_checkpoint_safely(path)
    assert not (tmp_path / 'RUN').exists()
    assert allowed() == before


def test_nothing_stays_allowed(tmp_path, allowed):
    before = allowed()
    load_checkpoint_safely(_saved(tmp_path, _runner_checkpoint()))
    assert allowed() == before


def test_mmengine_reads_no_wider(tmp_path, safe_mmengine):
    model = torch.nn.Linear(2, 2)
    path = _saved(tmp_path, dict(state_dict=model.state_dict(), message_hub=MessageHub('a')))
    with pytest.raises(CheckpointError, match='MessageHub'):
        load_checkpoint(model, str(path))
    path = _saved(tmp_path, dict(_runner_checkpoint(), state_dict=model.state_dict()))
    assert load_checkpoint(model, str(path), map_location='cpu')['meta']['epoch'] == 3


def test_downloads_are_read_no_wider(tmp_path, monkeypatch, safe_mmengine):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    served = tmp_path / 'served'
    served.mkdir()
    torch.save(dict(state_dict=dict(a=torch.ones(2))), served / 'good.pth')
    torch.save(dict(x=_Call(os.mkdir, str(tmp_path / 'RUN'))), served / 'bad.pth')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        found = CheckpointLoader.load_checkpoint(f'{address}/good.pth', 'cpu')
        assert torch.equal(found['state_dict']['a'], torch.ones(2))
        with pytest.raises(CheckpointError, match='mkdir'):
            CheckpointLoader.load_checkpoint(f'{address}/bad.pth', 'cpu')
        zoo = dict(own=f'{address}/bad.pth')
        monkeypatch.setattr(checkpoint_module, 'get_external_models', lambda: zoo)
        with pytest.raises(CheckpointError, match='mkdir'):
            CheckpointLoader.load_checkpoint('open-mmlab://own', 'cpu')
        with pytest.raises(CheckpointError, match=r'absent\.pth cannot be downloaded .*404'):
            CheckpointLoader.load_checkpoint(f'{address}/absent.pth', 'cpu')
        server.shutdown()
    assert not (tmp_path / 'RUN').exists()
    # The second time from the cache, the server being gone.
    assert CheckpointLoader.load_checkpoint(f'{address}/good.pth', 'cpu')


def test_other_backends_are_read_no_wider(tmp_path, monkeypatch, safe_mmengine):
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    bad = _saved(tmp_path, dict(x=_Call(os.mkdir, str(tmp_path / 'RUN'))))
    zoo = dict(local=bad.name)
    monkeypatch.setattr(checkpoint_module, 'get_external_models', lambda: zoo)
    with pytest.raises(CheckpointError, match='mkdir'):
        CheckpointLoader.load_checkpoint('open-mmlab://local', 'cpu')
    load = checkpoint_module._safe_torch_load
    with pytest.raises(CheckpointError, match=r'from the storage backend is refused.*mkdir'):
        load(io.BytesIO(bad.read_bytes()))
    assert not (tmp_path / 'RUN').exists()
    good = _saved(tmp_path, _runner_checkpoint())
    assert load(io.BytesIO(good.read_bytes()))['meta']['epoch'] == 3


def test_safetensors_only_where_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(CheckpointError, match='pip install safetensors'):
        load_checkpoint_safely(tmp_path / 'weights.safetensors')


def test_safetensors(tmp_path):
    pytest.importorskip('safetensors')
    from safetensors.torch import save_file

    path = tmp_path / 'weights.safetensors'
    with pytest.raises(CheckpointError, match='does not exist'):
        load_checkpoint_safely(path)
    save_file(dict(a=torch.ones(2)), path)
    assert torch.equal(load_checkpoint_safely(path)['state_dict']['a'], torch.ones(2))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match='truncated'):
        load_checkpoint_safely(path)


def test_every_cut_of_a_file_is_an_error(tmp_path):
    whole = _saved(tmp_path, dict(state_dict=dict(a=torch.ones(50)))).read_bytes()
    path = tmp_path / 'cut.pth'
    cuts = range(0, len(whole), 97)
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r'cut\.pth'):
            load_checkpoint_safely(path)
    assert len(cuts) > 10


def test_folder_and_home(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match='is a folder'):
        load_checkpoint_safely(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    _saved(tmp_path, dict(a=torch.ones(1)))
    assert 'a' in load_checkpoint_safely('~/checkpoint.pth')


def test_map_location(tmp_path):
    path = _saved(tmp_path, dict(a=torch.ones(1)))
    assert load_checkpoint_safely(path, map_location='meta')['a'].is_meta


def test_state_dict_of():
    weight = torch.ones(1)
    assert state_dict_of({'state_dict': {'module.a': weight}, 'meta': {}}) == {'a': weight}
    assert state_dict_of({'a': weight, 'epoch': 3}) == {'a': weight}
    with pytest.raises(CheckpointError, match=r'x\.pth holds no weights .* holds epoch'):
        state_dict_of({'epoch': 3}, 'x.pth')
