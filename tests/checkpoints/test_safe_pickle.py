"""Checkpoints, predictions and archives made to do harm: refused by name, nothing is run."""

import codecs
import collections
import contextlib
import importlib
import io
import json
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import types
import webbrowser
import zipfile

import mmengine
import numpy as np
import pytest
import torch
from mmengine.fileio.handlers import file_handlers
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import BaseLoop, CheckpointLoader, Runner
from mmengine.runner import checkpoint as checkpoint_module

from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of, use_safe_loading
from coc_mm.checkpoints.official import read_official
from coc_mm.checkpoints.publish import publish
from coc_mm.errors import CheckpointError

RECONSTRUCT = np.zeros(1).__reduce__()[0]


class Call:
    """Pickled as a call, and a state set on its result."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


def saved(folder, content, **options):
    path = folder / 'weights.pth'
    torch.save(content, path, **options)
    return path


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob('RUN*')), 'code of the file was run'


GADGETS = {
    'os.system': Call(os.system, 'touch RUN'),
    'subprocess.Popen': Call(subprocess.Popen, ['touch', 'RUN']),
    'subprocess.check_output': Call(subprocess.check_output, ['touch', 'RUN']),
    'exec': Call(exec, "open('RUN', 'w')"),
    'open': Call(open, 'RUN', 'w'),
    'compile': Call(compile, "open('RUN', 'w')", 'x', 'exec'),
    'runpy': Call(runpy.run_path, 'RUN.py'),
    'import_module': Call(importlib.import_module, 'this'),
    'operator': Call(operator.methodcaller, 'system', 'touch RUN'),
    'attrgetter': Call(operator.attrgetter, 'system'),
    'rmtree': Call(shutil.rmtree, '.'),
    'webbrowser': Call(webbrowser.open, 'file:///RUN'),
    'types': Call(types.SimpleNamespace),
    'codecs': Call(codecs.open, 'RUN', 'w'),
    'pickle again': Call(pickle.loads, pickle.dumps(Call(os.mkdir, 'RUN'))),
    'torch.load': Call(torch.load, 'RUN.pth'),
    'torch.hub': Call(torch.hub.load, '.', 'RUN'),
    'numpy.load': Call(np.load, 'RUN.npy'),
    'fromfile': Call(np.fromfile, '/etc/passwd'),
    'memmap': Call(np.memmap, 'RUN', np.uint8, 'w+', 0, (1,)),
    'a method of HistoryBuffer': Call(getattr, HistoryBuffer, '__init__'),
    'attribute of a result': Call(getattr, dict, 'fromkeys'),
}


@pytest.mark.parametrize('gadget', GADGETS)
@pytest.mark.parametrize('where', ['hidden', 'alone', 'in the metadata', 'of the older format'])
def test_gadgets_are_refused_by_name(gadget, where, tmp_path):
    content = dict(state_dict={'a.weight': torch.ones(2), 'b.weight': torch.ones(3)})
    zipped = where != 'of the older format'
    if where == 'alone':
        content = GADGETS[gadget]
    elif where == 'in the metadata':
        weights = collections.OrderedDict(content['state_dict'])
        weights._metadata = {'': dict(version=GADGETS[gadget])}
        content['state_dict'] = weights
    else:
        content['state_dict']['c.weight'] = GADGETS[gadget]
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'weights\.pth is refused: it holds .* may run'):
        load_checkpoint_safely(path)


@pytest.mark.parametrize('protocol', range(6))
def test_plain_pickles_as_checkpoints(protocol, tmp_path):
    (tmp_path / 'x.pth').write_bytes(pickle.dumps(Call(os.mkdir, 'RUN'), protocol))
    with pytest.raises(CheckpointError, match=r'x\.pth'):
        load_checkpoint_safely(tmp_path / 'x.pth')


def array(dtype, data=b'A' * 8, shape=(1,)):
    state = (1, shape, dtype, False, data)
    return Call(RECONSTRUCT, np.ndarray, (0,), b'b', state=state)


def dtype(code, *state):
    return Call(np.dtype, code, False, True, state=(3, *state))


# NumPy believes the state of a type; each of these made it read or free an address of the file.
LAYOUTS = {
    'a field of objects in text': array(
        dtype('U2', '<', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 4, 0)
    ),
    'objects without their flag': array(dtype('O8', '|', None, None, None, -1, -1, 0)),
    'a negative size': array(dtype('U2', '<', None, None, None, -8, 4, 0)),
    'a size of its own': array(dtype('U2', '<', None, None, None, 1 << 30, 4, 8)),
    'arrays inside': array(dtype('U2', '<', (np.dtype('O'), (1,)), None, None, 8, 4, 0)),
    'more than is there': array(np.dtype('f8'), shape=(1 << 40,)),
    'an overflow': array(np.dtype('f8'), shape=(1 << 62, 4)),
    'below zero': array(np.dtype('f8'), shape=(-1,)),
    'a field': array(np.dtype([('a', 'O')])),
    'memory as it was': Call(np.ndarray, (4,)),
    'a scalar of objects': Call(np.float64(0).__reduce__()[0], np.dtype('O'), b'A' * 8),
    'a short scalar': Call(np.float64(0).__reduce__()[0], np.dtype('f8'), b'A' * 4),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_arrays_are_rebuilt_from_their_bytes_alone(layout, tmp_path):
    path = saved(tmp_path, dict(a=torch.ones(1), x=LAYOUTS[layout]))
    with pytest.raises(CheckpointError, match=r'weights\.pth is (refused|truncated or damaged)'):
        load_checkpoint_safely(path)


def test_flags_of_a_type_are_not_taken_over(tmp_path):
    x = array(dtype('U2', '<', None, None, None, 8, 4, 1), 'ab'.encode('utf-32-le'))
    found = load_checkpoint_safely(saved(tmp_path, dict(x=x)))['x']
    assert found.dtype == np.dtype('<U2')
    assert found.dtype.flags == np.dtype('<U2').flags
    assert found.tolist() == ['ab']


def _hiding(name):
    weights = collections.OrderedDict(a=torch.ones(1))
    vars(weights)[name] = HistoryBuffer
    return weights


@pytest.mark.parametrize('name', ['keys', 'get', '__class__'])
def test_methods_of_a_dict_are_not_replaced(name, tmp_path):
    with pytest.raises(CheckpointError, match=f'a dict with the attribute {name!r}'):
        load_checkpoint_safely(saved(tmp_path, dict(state_dict=_hiding(name))))


def test_arrays_inside_of_everything_arrive(tmp_path):
    loop = [np.arange(2)]
    loop.append(loop)
    objects = np.array([np.arange(3), None], dtype=object)
    content = dict(
        deep=(1, (2, [dict(x=(np.arange(4),))])), loop=loop, objects=objects, big=np.arange(3, 6.0)
    )
    content['big'] = content['big'].astype('>f4')
    content['fortran'] = np.asfortranarray(np.arange(6).reshape(2, 3))
    found = load_checkpoint_safely(saved(tmp_path, content))
    np.testing.assert_array_equal(found['deep'][1][1][0]['x'][0], np.arange(4))
    assert found['loop'][1] is found['loop']
    np.testing.assert_array_equal(found['loop'][0], [0, 1])
    np.testing.assert_array_equal(found['objects'][0], np.arange(3))
    assert found['big'].dtype == np.dtype('>f4')
    assert found['big'].tolist() == [3, 4, 5]
    np.testing.assert_array_equal(found['fortran'], content['fortran'])
    assert type(found['fortran']) is np.ndarray


WEIGHT = {'backbone.conv.weight': torch.ones(2, 3), 'backbone.conv.bias': torch.ones(2)}


def _with(value):
    return WEIGHT | {'backbone.conv.weight': value}


def quantized():
    return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)


TENSORS = {
    'sparse': (lambda: torch.ones(2, 3).to_sparse(), 'a sparse tensor'),
    'sparse rows': (lambda: torch.ones(2, 3).to_sparse_csr(), 'a sparse tensor'),
    'quantized': (quantized, 'a quantized tensor'),
    'without data': (lambda: torch.ones(2, 3, device='meta'), r'without data \(device meta\)'),
    'a terabyte of stride 0': (lambda: torch.ones(1).expand(1 << 38), 'tensors of 1099.5 GB'),
    'integers': (lambda: torch.ones(2, 3, dtype=torch.int8), 'that are of integers .*int8'),
    'booleans': (lambda: torch.ones(2, 3, dtype=torch.bool), 'that are of integers .*bool'),
    'complex': (lambda: torch.ones(2, 3, dtype=torch.complex64), 'that are complex'),
    'NaN': (lambda: torch.full((2, 3), torch.nan), 'NaN in 1 of 2 tensors .*conv.weight'),
    'NaN of 8 bits': (lambda: torch.full((2, 3), torch.nan).to(torch.float8_e5m2), 'NaN in 1'),
    'NaN, half': (lambda: torch.full((2, 3), torch.nan).half(), 'NaN in 1'),
}


@pytest.mark.parametrize('kind', TENSORS)
@pytest.mark.filterwarnings('ignore')  # of torch, about quantized and sparse tensors
def test_tensors_that_are_no_weights_are_refused(kind, tmp_path):
    make, says = TENSORS[kind]
    path = saved(tmp_path, dict(state_dict=_with(make())))
    readers = dict(
        inference=lambda: state_dict_of(load_checkpoint_safely(path), str(path)),
        conversion=lambda: read_official(str(path)),
        publishing=lambda: publish(str(path), str(tmp_path / 'out.pth')),
    )
    for read in readers.values():
        with pytest.raises(CheckpointError, match=says) as caught:
            read()
        assert str(path) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ['weights.pth']


TAKEN = {
    'float64': lambda: torch.ones(2, 3, dtype=torch.float64),
    'bfloat16': lambda: torch.ones(2, 3, dtype=torch.bfloat16),
    'float8': lambda: torch.ones(2, 3).to(torch.float8_e4m3fn),
    'a scalar': lambda: torch.tensor(2.0),
    'nothing': lambda: torch.ones(0, 3),
    'odd strides': lambda: torch.ones(3, 5).T[::2],
    'a parameter': lambda: torch.nn.Parameter(torch.ones(2, 3)),
    'infinite': lambda: torch.full((2, 3), torch.inf),
}


@pytest.mark.parametrize('kind', TAKEN)
def test_tensors_that_are_weights_are_taken(kind, tmp_path):
    value = TAKEN[kind]()
    buffers = {'backbone.index': torch.arange(4), 'norm.num_batches_tracked': torch.tensor(7)}
    path = saved(tmp_path, dict(state_dict=_with(value) | buffers))
    found = state_dict_of(load_checkpoint_safely(path), str(path))
    assert found['backbone.conv.weight'].dtype == value.dtype
    assert torch.equal(found['backbone.conv.weight'].double(), value.double())
    assert torch.equal(found['backbone.index'], torch.arange(4))


def test_attributes_of_tensors_do_not_stay(tmp_path):
    """FSDP's tensors have notes; others could stand in for a method."""
    weight = torch.ones(2, 3)
    weight._has_been_cloned, weight.to = True, 'somewhere'
    path = saved(tmp_path, dict(state_dict=_with(weight)))
    found = state_dict_of(load_checkpoint_safely(path), str(path))['backbone.conv.weight']
    assert vars(found) == {}
    assert torch.equal(found.to(torch.float64), torch.ones(2, 3, dtype=torch.float64))


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_archives_that_blow_up_are_refused(tmp_path):
    path = saved(tmp_path, dict(a=torch.zeros(5_000_000)))
    members = members_of(path)
    zipped(path, members, zipfile.ZIP_DEFLATED)
    assert os.path.getsize(path) < 100_000
    with pytest.raises(CheckpointError, match=r'declare 20000.* bytes of content, or are compress'):
        load_checkpoint_safely(path)
    # Members that overlap declare more than the file has, though none is compressed.
    content = zipped(path, {'weights/data.pkl': b'x', 'weights/a': bytes(100)}).read_bytes()
    directory = content.index(b'PK\x01\x02', content.index(b'PK\x01\x02') + 1)
    size = directory + 24
    path.write_bytes(content[: size - 4] + b'\xff\xff\xff\x7f' * 2 + content[size + 4 :])
    with pytest.raises(CheckpointError, match=r'is refused|is truncated or damaged'):
        load_checkpoint_safely(path)
    zipped(path, members)
    load_checkpoint_safely(path)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('weights/data.pkl', pickle.dumps(Call(os.mkdir, 'RUN'), 2))
    with pytest.raises(CheckpointError, match='members of the same name'):
        load_checkpoint_safely(path)


@pytest.mark.parametrize('name', ['../RUN', '/tmp/RUN_coc_mm', 'weights/data/../../RUN'])
def test_names_in_an_archive_write_nothing(name, tmp_path):
    path = saved(tmp_path, dict(a=torch.ones(3)))
    zipped(path, members_of(path) | {name: b'x'})
    with contextlib.suppress(CheckpointError):  # no part of a checkpoint, so either will do
        assert torch.equal(load_checkpoint_safely(path)['a'], torch.ones(3))
    assert os.listdir(tmp_path) == ['weights.pth']
    assert not os.path.exists('/tmp/RUN_coc_mm')


def test_a_storage_that_is_cut_or_missing_is_an_error(tmp_path):
    path = saved(tmp_path, dict(a=torch.ones(50), b=torch.ones(5)))
    members = members_of(path)
    for change in (members['weights/data/0'][:-9], b'', None):
        changed = {k: v for k, v in members.items() if k != 'weights/data/0'}
        zipped(path, changed if change is None else changed | {'weights/data/0': change})
        with pytest.raises(CheckpointError, match=r'weights\.pth is truncated or damaged'):
            load_checkpoint_safely(path)


def test_programs_are_no_checkpoints(tmp_path):
    path = tmp_path / 'program.pt2'
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(exported, path)
    with pytest.raises(CheckpointError, match=r'program\.pt2 is an exported program'):
        load_checkpoint_safely(path)
    zipped(tmp_path / 's.pt', {'s/data.pkl': b'\x80\x02}.', 's/constants.pkl': b'\x80\x02).'})
    with pytest.raises(CheckpointError, match=r's\.pt is a TorchScript archive'):
        load_checkpoint_safely(tmp_path / 's.pt')


@pytest.mark.parametrize(
    ('meta', 'says'),
    [
        ([1], 'its meta is a list'),
        (dict(dataset_meta='cat'), 'its dataset_meta is a str'),
        (dict(dataset_meta=dict(classes=7)), 'its classes are no list of names'),
        (dict(CLASSES=[1, 2]), 'its classes are no list of names'),
        (dict(coc_mm=3), 'its coc_mm is a int'),
        (dict(coc_mm=dict(backbone=[])), 'its backbone is a list'),
    ],
)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_metadata_that_are_none_are_refused(meta, says, suffix, tmp_path):
    path = tmp_path / f'weights{suffix}'
    if suffix == '.pth':
        torch.save(dict(meta=meta, state_dict=WEIGHT), path)
    else:
        pytest.importorskip('safetensors.torch').save_file(
            WEIGHT, path, dict(meta=json.dumps(meta))
        )
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint_safely(path)


@pytest.mark.parametrize('text', ['[' * 100_000, '{"a": ', 'NaN', '"' + 'x' * 1000 + '"'])
def test_headers_of_safetensors(text, tmp_path):
    path = tmp_path / 'weights.safetensors'
    pytest.importorskip('safetensors.torch').save_file(WEIGHT, path, dict(meta=text))
    with pytest.raises(CheckpointError, match=r'weights\.safetensors') as caught:
        load_checkpoint_safely(path)
    assert len(str(caught.value)) < 400
    for content in (b'', b'\xff' * 8, (1 << 40).to_bytes(8, 'little') + b'{}', b'PK\x03\x04'):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match='no safetensors file'):
            load_checkpoint_safely(path)


@pytest.fixture
def safe_mmengine(monkeypatch):
    """Register the safe readers, and take them back."""
    for name in ('load_from_http', '_safe_torch_load'):
        monkeypatch.setattr(checkpoint_module, name, getattr(checkpoint_module, name, None))
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    for name in ('pkl', 'pickle'):
        monkeypatch.setitem(file_handlers, name, file_handlers[name])
    use_safe_loading()


class _Model(BaseModel):
    def forward(self):
        """Never called."""


class _Loop(BaseLoop):
    epoch = property(lambda self: self._epoch)
    iter = property(lambda self: self._iter)

    def run(self):
        """Never called."""


@pytest.mark.parametrize('zipped', [True, False])
def test_a_config_in_a_checkpoint_is_not_run_on_resuming(zipped, safe_mmengine, tmp_path):
    path = saved(
        tmp_path,
        dict(
            meta=dict(config="open('RUN', 'w')", cfg="open('RUN', 'w')", epoch=3, iter=7),
            state_dict={},
            message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        ),
        _use_new_zipfile_serialization=zipped,
    )
    runner = Runner(_Model(), str(tmp_path / 'work'), experiment_name='resumes')
    runner._train_loop = _Loop(runner, torch.utils.data.DataLoader([0]))
    runner.load_or_resume()
    runner.resume(str(path), resume_optimizer=False, resume_param_scheduler=False)
    assert (runner.train_loop.epoch, runner.train_loop.iter) == (3, 7)


@pytest.mark.parametrize('gadget', GADGETS)
@pytest.mark.parametrize('protocol', [2, 5])
def test_pickles_of_annotations_run_nothing(gadget, protocol, safe_mmengine, tmp_path):
    path = tmp_path / 'annotations.pkl'
    path.write_bytes(pickle.dumps([dict(img='a.jpg'), GADGETS[gadget]], protocol))
    with pytest.raises(ValueError, match=r'\(\.pkl\) .* is refused \(it holds .* may run code'):
        mmengine.load(str(path))


def test_annotations_with_keys_too_deep_are_refused(safe_mmengine, tmp_path):
    """Read by mmengine as other pickles; test_pickle_plans.py has the ways to nest them."""
    (tmp_path / 'a.pkl').write_bytes(b'\x80\x02})' + b'\x85' * 200_000 + b'K\x01s.')
    with pytest.raises(ValueError, match='tuples nested more than 100 deep'):
        mmengine.load(str(tmp_path / 'a.pkl'))


def test_pickles_of_predictions_are_read_as_data(safe_mmengine, tmp_path):
    rows = [
        dict(
            scores=torch.rand(3), boxes=np.eye(4, dtype=np.float32), label=np.int64(3), id=(1, 'x')
        )
    ]
    for name in ('out.pkl', 'out.pickle'):
        mmengine.dump(rows, str(tmp_path / name))
        (found,) = mmengine.load(str(tmp_path / name))
        assert torch.equal(found['scores'], rows[0]['scores'])
        np.testing.assert_array_equal(found['boxes'], rows[0]['boxes'])
        assert (found['label'], found['id']) == (3, (1, 'x'))
    content = (tmp_path / 'out.pkl').read_bytes()
    cuts = range(0, len(content), 41)
    for cut in cuts:
        (tmp_path / 'out.pkl').write_bytes(content[:cut])
        with pytest.raises(ValueError, match='is refused'):
            mmengine.load(str(tmp_path / 'out.pkl'))
    assert len(cuts) > 10
    evil = io.BytesIO()
    torch.save(Call(os.mkdir, 'RUN'), evil, _use_new_zipfile_serialization=False)
    storage = Call(torch.storage._load_from_bytes, evil.getvalue())
    (tmp_path / 'out.pkl').write_bytes(pickle.dumps([storage]))
    with pytest.raises(ValueError, match=r'is refused .*mkdir'):
        mmengine.load(str(tmp_path / 'out.pkl'))
