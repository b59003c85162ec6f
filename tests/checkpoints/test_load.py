import functools
import http.server
import io
import os
import threading

import pytest
import torch
from hostile import Call
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.runner import BaseLoop, CheckpointLoader, Runner, load_checkpoint
from mmengine.runner import checkpoint as checkpoint_module
from torch import nn

from coc_mm.apis.convert import convert_checkpoint
from coc_mm.checkpoints import load
from coc_mm.checkpoints.load import (
    Comparison,
    check_weights,
    is_local,
    load_checkpoint_safely,
    state_dict_of,
)
from coc_mm.checkpoints.publish import publish
from coc_mm.errors import CheckpointError, UserError


def test_local_paths_and_others():
    for path in ('a.pth', '/a/b.pth', '~/a.pth', r'C:\a.pth'):
        assert is_local(path)
    for path in ('https://x/a.pth', 'open-mmlab://resnet', 's3://b/a', 'm:s3://a'):
        assert not is_local(path)


def test_what_was_read_for_a_check_is_not_read_again(saved, monkeypatch):
    path = saved(dict(state_dict=dict(a=torch.ones(1))))
    reads = []
    read_file = load.read_file
    monkeypatch.setattr(load, 'read_file', lambda *args: reads.append(args) or read_file(*args))
    first = load_checkpoint_safely(path, hold=True)
    assert load_checkpoint_safely(path) is first
    assert len(reads) == 1
    assert load_checkpoint_safely(path) is not first  # it was handed over once
    load_checkpoint_safely(path, hold=True)
    os.utime(path, (1, 1))  # another file now
    load_checkpoint_safely(path)
    assert len(reads) == 4


def test_mmengine_reads_no_wider(saved, safe_mmengine):
    model = nn.Linear(2, 2)
    path = saved(dict(state_dict=model.state_dict(), message_hub=MessageHub('a')))
    with pytest.raises(CheckpointError, match='MessageHub'):
        load_checkpoint(model, str(path))
    path = saved(dict(meta=dict(epoch=3), state_dict=model.state_dict()))
    assert load_checkpoint(model, str(path), map_location='cpu')['meta']['epoch'] == 3


def test_downloads_are_read_no_wider(tmp_path, monkeypatch, safe_mmengine):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    served = tmp_path / 'served'
    served.mkdir()
    torch.save(dict(state_dict=dict(a=torch.ones(2))), served / 'good.pth')
    torch.save(dict(x=Call(os.mkdir, str(tmp_path / 'RUN'))), served / 'bad.pth')
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
        for read in (CheckpointLoader.load_checkpoint, load_checkpoint_safely):
            with pytest.raises(CheckpointError, match='mkdir'):
                read('open-mmlab://own', 'cpu')
        with pytest.raises(CheckpointError, match=r'absent\.pth cannot be downloaded .*404'):
            load_checkpoint_safely(f'{address}/absent.pth')
        server.shutdown()
    # The second time from the cache, the server being gone.
    assert CheckpointLoader.load_checkpoint(f'{address}/good.pth', 'cpu')


def test_other_backends_are_read_no_wider(tmp_path, saved, monkeypatch, safe_mmengine):
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    bad = saved(dict(x=Call(os.mkdir, str(tmp_path / 'RUN'))))
    monkeypatch.setattr(checkpoint_module, 'get_external_models', lambda: dict(local=bad.name))
    with pytest.raises(CheckpointError, match='mkdir'):
        CheckpointLoader.load_checkpoint('open-mmlab://local', 'cpu')
    read = checkpoint_module._safe_torch_load
    with pytest.raises(CheckpointError, match=r'from the storage backend is refused.*mkdir'):
        read(io.BytesIO(bad.read_bytes()))
    good = saved(dict(meta=dict(epoch=3)))
    assert read(io.BytesIO(good.read_bytes()))['meta']['epoch'] == 3


class _Model(BaseModel):
    def forward(self):
        """Never called."""


class _Loop(BaseLoop):
    epoch = property(lambda self: self._epoch)
    iter = property(lambda self: self._iter)

    def run(self):
        """Never called."""


def test_a_config_in_a_checkpoint_is_not_run_on_resuming(safe_mmengine, saved, tmp_path):
    path = saved(
        dict(
            meta=dict(config="open('RUN', 'w')", cfg="open('RUN', 'w')", epoch=3, iter=7),
            state_dict={},
            message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        )
    )
    runner = Runner(_Model(), str(tmp_path / 'work'), experiment_name='resumes')
    runner._train_loop = _Loop(runner, torch.utils.data.DataLoader([0]))
    runner.load_or_resume()
    runner.resume(str(path), resume_optimizer=False, resume_param_scheduler=False)
    assert (runner.train_loop.epoch, runner.train_loop.iter) == (3, 7)


def test_state_dict_of():
    weight = torch.ones(1)
    wrapped = nn.ModuleDict(dict(module=nn.Linear(1, 1))).state_dict()
    wrapped._metadata['module']['denominator'] = 'count'
    found = state_dict_of(dict(state_dict=wrapped))
    assert list(found) == ['weight', 'bias']
    assert found._metadata['']['denominator'] == 'count'
    assert state_dict_of({'a': weight, 'epoch': 3}) == {'a': weight}
    with pytest.raises(CheckpointError, match=r'x\.pth holds no weights .* holds epoch'):
        state_dict_of({'epoch': 3}, 'x.pth')


# An official name among them, so that every reader takes its way to the weights.
WEIGHT = {
    'backbone.network.0.0.token_mixer.f.weight': torch.ones(2, 3),
    'backbone.network.0.0.token_mixer.v.weight': torch.ones(2, 3),
}
TENSORS = {
    'sparse': (lambda: torch.ones(2, 3).to_sparse(), 'are not dense'),
    'without data': (lambda: torch.ones(2, 3, device='meta'), r'without data \(device meta\)'),
    'integers': (lambda: torch.ones(2, 3, dtype=torch.int8), r'are of integers .*int8'),
    'complex': (lambda: torch.ones(2, 3, dtype=torch.complex64), 'are complex'),
    'NaN': (lambda: torch.full((2, 3), torch.nan), r'1 of its 2 tensors are NaN .*f\.weight'),
}


@pytest.mark.parametrize('kind', TENSORS)
@pytest.mark.filterwarnings('ignore')  # of torch, about sparse tensors
def test_tensors_that_are_no_weights_are_refused(kind, saved):
    make, says = TENSORS[kind]
    path = str(saved(dict(state_dict=WEIGHT | {next(iter(WEIGHT)): make()})))
    readers = dict(
        inference=lambda: state_dict_of(load.read_file(path), path),
        conversion=lambda: convert_checkpoint(path),
        publishing=lambda: publish(path, 'out.pth'),
    )
    for read in readers.values():
        with pytest.raises(CheckpointError, match=says) as caught:
            read()
        assert path in str(caught.value)
    assert os.listdir() == ['weights.pth']


TAKEN = {
    'bfloat16': torch.ones(2, 3, dtype=torch.bfloat16),
    'odd strides': torch.ones(3, 5).T[::2],
    'a parameter': nn.Parameter(torch.ones(2, 3)),
    'infinite': torch.full((2, 3), torch.inf),
}


@pytest.mark.parametrize('kind', TAKEN)
def test_tensors_that_are_weights_are_taken(kind, saved):
    value = TAKEN[kind]
    buffers = {'backbone.index': torch.arange(4), 'norm.num_batches_tracked': torch.tensor(7)}
    path = saved(dict(state_dict={'conv.weight': value, **buffers}))
    found = state_dict_of(load_checkpoint_safely(path), str(path))
    assert found['conv.weight'].dtype == value.dtype
    assert torch.equal(found['conv.weight'].double(), value.double())
    assert torch.equal(found['backbone.index'], torch.arange(4))


def _model(**layers):
    return nn.ModuleDict({name: nn.Linear(*shape) for name, shape in layers.items()})


def test_comparison_counts_and_names():
    ours, theirs = _model(a=(2, 3), b=(2, 2), c=(1, 1)), _model(a=(2, 3), b=(4, 2), d=(1, 1))
    found = Comparison.of(theirs.state_dict(), ours.state_dict())
    assert found.common == 3
    assert found.mismatched == ['b.weight is 2x4, the model has 2x2']
    assert found.missing == ['c.weight', 'c.bias']
    assert found.unexpected == ['d.weight', 'd.bias']
    assert found.share == 3 / 6
    text = found.describe()
    assert text.startswith('3 weights match; 1 of another shape (b.weight is 2x4')
    assert '2 missing (c.weight, c.bias), 2 unexpected (d.weight, d.bias)' in text
    found = Comparison.of({}, _model(a=(1, 1), b=(1, 1)).state_dict())
    assert found.describe() == '0 weights match; 4 missing (a.weight, a.bias, b.weight, ...)'
    assert found.describe(None).endswith('4 missing (a.weight, a.bias, b.weight, b.bias)')


def test_counters_of_batch_norm_may_be_missing():
    model = nn.BatchNorm2d(2)
    state = model.state_dict()
    state.pop('num_batches_tracked')
    assert Comparison.of(state, model.state_dict()).exact
    check_weights(model, dict(state_dict=state), 'a.pth', strict=True)


class _Renaming(nn.Linear):
    """A model that reads its older weights, as several of mmdet do."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ('weight', 'bias'):
            if f'{prefix}old_{name}' in state_dict:
                state_dict[prefix + name] = state_dict.pop(f'{prefix}old_{name}')
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_a_model_may_rename_weights_itself():
    state = {f'old_{name}': value for name, value in nn.Linear(2, 2).state_dict().items()}
    check_weights(_Renaming(2, 2), state, 'a.pth', strict=True)
    with pytest.raises(UserError, match='of another model'):
        check_weights(nn.Linear(2, 2), state, 'a.pth', strict=True)


def test_starting_weights_may_differ_in_their_head(capsys):
    ours = _model(a=(2, 3), b=(2, 2), head=(2, 10))
    theirs = dict(state_dict=_model(a=(2, 3), b=(2, 2), head=(2, 5)).state_dict())
    check_weights(ours, theirs, 'a.pth', strict=False)
    assert 'load_from a.pth: 4 weights match; 2 of another shape' in capsys.readouterr().out
    with pytest.raises(UserError, match='2 of another shape'):
        check_weights(ours, theirs, 'a.pth', strict=True)
    part = _model(a=(2, 3)).state_dict()
    check_weights(ours, part, 'a.pth', strict=False)  # a part may start the whole
