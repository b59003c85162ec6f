"""Files of the tools that people train with are read in full, files made to do harm refused."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from hostile import GADGETS, Call
from mmengine.logging import HistoryBuffer, MessageHub

from coc_mm.checkpoints.safe_pickle import read_file
from coc_mm.errors import CheckpointError

RECONSTRUCT = np.zeros(1).__reduce__()[0]


def runner_checkpoint():
    hub = MessageHub('test_safe_pickle')
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
def test_runner_checkpoint_is_read_in_full(saved, zipped):
    before = set(torch.serialization.get_safe_globals())
    expected = runner_checkpoint()
    found = read_file(saved(expected, _use_new_zipfile_serialization=zipped))
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
    assert set(torch.serialization.get_safe_globals()) == before


def test_archive_of_timm_is_read(saved):
    options = argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath('/out'), betas=(0.9, 0.99))
    found = read_file(saved(dict(arch='coc', epoch=3, args=options, state_dict={})))
    assert found['args'] == options


@pytest.mark.parametrize('code', '?bBhHiIlLqQefd')
def test_arrays_of_every_type_are_read(saved, code):
    array = np.arange(4).reshape(2, 2).astype(code)
    found = read_file(saved(dict(array=array, scalar=array[1, 1])))
    np.testing.assert_array_equal(found['array'], array)
    assert found['array'].dtype == array.dtype
    assert found['scalar'] == array[1, 1]


def test_checkpoints_of_either_numpy_are_read(tmp_path):
    # numpy 2 renamed the module of the functions that rebuild arrays.
    content = pickle.dumps(dict(array=np.arange(3), scalar=np.float64(2.5)), protocol=2)
    for module in (b'numpy._core.multiarray', b'numpy.core.multiarray'):
        path = tmp_path / 'other.pth'
        head = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
        head += pickle.dumps(1001, protocol=2) + pickle.dumps({}, protocol=2)
        renamed = content.replace(b'numpy._core.multiarray', module)
        path.write_bytes(head + renamed + pickle.dumps([], protocol=2))
        found = read_file(path)
        np.testing.assert_array_equal(found['array'], np.arange(3))
        assert found['scalar'] == 2.5


def test_arrays_inside_of_everything_arrive(saved):
    loop = [np.arange(2)]
    loop.append(loop)
    content = dict(deep=(1, (2, [dict(x=(np.arange(4),))])), loop=loop)
    content['big'] = np.arange(3, 6.0).astype('>f4')
    content['fortran'] = np.asfortranarray(np.arange(6).reshape(2, 3))
    content['empty'] = np.zeros((0, 4))
    found = read_file(saved(content))
    np.testing.assert_array_equal(found['deep'][1][1][0]['x'][0], np.arange(4))
    assert found['loop'][1] is found['loop']
    np.testing.assert_array_equal(found['loop'][0], [0, 1])
    assert found['big'].dtype == np.dtype('>f4')
    assert found['big'].tolist() == [3, 4, 5]
    np.testing.assert_array_equal(found['fortran'], content['fortran'])
    assert type(found['fortran']) is np.ndarray
    assert found['empty'].shape == (0, 4)


def test_other_objects_are_refused_with_the_reason(saved):
    content = dict(groups=collections.defaultdict(list, a=[1]))
    with pytest.raises(CheckpointError, match=r'refused: it holds .*defaultdict'):
        read_file(saved(content))


@pytest.mark.parametrize('gadget', GADGETS)
@pytest.mark.parametrize('where', ['hidden', 'alone', 'of the older format'])
def test_code_is_refused_by_name_and_not_run(gadget, where, saved):
    content = dict(state_dict={'a.weight': torch.ones(2), 'b.weight': GADGETS[gadget]})
    path = saved(
        GADGETS[gadget] if where == 'alone' else content,
        _use_new_zipfile_serialization=where != 'of the older format',
    )
    with pytest.raises(CheckpointError, match=r'weights\.pth is refused: it holds .* may run'):
        read_file(path)


def test_what_a_program_allows_elsewhere_is_refused_here(saved):
    path = saved(dict(x=Call(collections.ChainMap, {})))
    with torch.serialization.safe_globals([collections.ChainMap]):
        with pytest.raises(CheckpointError, match='ChainMap'):
            read_file(path)
        assert collections.ChainMap in torch.serialization.get_safe_globals()


def array(dtype, data=b'A' * 8, shape=(1,)):
    state = (1, shape, dtype, False, data)
    return Call(RECONSTRUCT, np.ndarray, (0,), b'b', state=state)


def dtype(code, *state):
    return Call(np.dtype, code, False, True, state=(3, *state))


LAYOUTS = {
    'more than is there': array(np.dtype('f8'), shape=(1 << 40,)),
    'an overflow': array(np.dtype('f8'), shape=(1 << 62, 4)),
    'a field': array(np.dtype([('a', 'O')])),
    'objects': np.array([1, None], dtype=object),
    'memory as it was': Call(np.ndarray, (4,)),
    'no type': array('f8'),
    'a short scalar': Call(np.float64(0).__reduce__()[0], np.dtype('f8'), b'A' * 4),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_arrays_are_rebuilt_from_their_bytes_alone(layout, saved):
    path = saved(dict(a=torch.ones(1), x=LAYOUTS[layout]))
    with pytest.raises(CheckpointError, match=r'weights\.pth is (refused|truncated or damaged)'):
        read_file(path)


@pytest.mark.parametrize(
    'state',
    [
        ('<', None, None, None, 8, 4, 1),
        ('<', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 4, 0),
        ('<', (np.dtype('i8'), (1,)), None, None, 1 << 30, 4, 8),
    ],
)
def test_the_layout_of_a_type_is_not_taken_over(state, saved):
    """NumPy believes the state of a type, and reads addresses that the file names."""
    x = array(dtype('U2', *state), 'ab'.encode('utf-32-le'))
    if state[2]:  # objects are refused before
        with pytest.raises(CheckpointError, match='numbers and text'):
            read_file(saved(dict(x=x)))
        return
    found = read_file(saved(dict(x=x)))['x']
    assert (found.dtype, found.dtype.flags) == (np.dtype('<U2'), np.dtype('<U2').flags)
    assert found.tolist() == ['ab']


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_archives_that_blow_up_are_refused(saved):
    path = saved(dict(a=torch.zeros(5_000_000)))
    zipped(path, members_of(path), zipfile.ZIP_DEFLATED)
    assert os.path.getsize(path) < 100_000
    with pytest.raises(CheckpointError, match=r'declare 20000.* bytes of content, or are compress'):
        read_file(path)


def test_storages_that_are_short_or_missing_are_an_error(saved):
    path = saved(dict(a=torch.ones(50), b=torch.ones(5)))
    members = members_of(path)
    first, second = 'weights/data/0', 'weights/data/1'
    for change in (members[first][:-9], b'', members[second], None):
        changed = {k: v for k, v in members.items() if k != first}
        zipped(path, changed if change is None else changed | {first: change})
        with pytest.raises(CheckpointError, match=r'weights\.pth is truncated or damaged'):
            read_file(path)


def test_every_cut_of_a_file_is_an_error(saved, tmp_path):
    for name, options in (('new', {}), ('old', dict(_use_new_zipfile_serialization=False))):
        whole = saved(dict(state_dict=dict(a=torch.ones(50))), f'{name}.pth', **options)
        content = whole.read_bytes()
        path = tmp_path / 'cut.pth'
        cuts = range(0, len(content), 97)
        for cut in cuts:
            path.write_bytes(content[:cut])
            with pytest.raises(CheckpointError, match=r'cut\.pth'):
                read_file(path)
        assert len(cuts) > 5


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (b'', r'is empty \(0 bytes\)'),
        (b'\n<!DOCTYPE html><html>', 'is a web page, not a checkpoint'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
        (b'weights', r"is not a PyTorch checkpoint \(it starts with b'weights'\)"),
        (pickle.dumps([1], 2), 'is not a PyTorch checkpoint, or damaged|truncated'),
    ],
)
def test_other_files_are_told_apart(content, says, tmp_path):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        read_file(tmp_path / 'x.pth')


def test_archives_of_other_things_are_told_apart(tmp_path, saved):
    path = tmp_path / 'program.pt2'
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), path)
    with pytest.raises(CheckpointError, match=r'program\.pt2 is an exported program'):
        read_file(path)
    zipped(tmp_path / 's.pt', {'s/data.pkl': b'\x80\x02}.', 's/constants.pkl': b'\x80\x02).'})
    with pytest.raises(CheckpointError, match=r's\.pt is a TorchScript archive'):
        read_file(tmp_path / 's.pt')
    zipped(tmp_path / 'x.zip', {'weights.pth': b'x'})
    with pytest.raises(CheckpointError, match=r'without a PyTorch checkpoint in it .*weights\.pth'):
        read_file(tmp_path / 'x.zip')
    with pytest.raises(CheckpointError, match='holds a list, not the dict of a checkpoint'):
        read_file(saved([1]))
    with pytest.raises(CheckpointError, match='its meta is a list'):
        read_file(saved(dict(meta=[1])))


def test_folder_and_home(tmp_path, monkeypatch, saved):
    with pytest.raises(CheckpointError, match='is a folder'):
        read_file(tmp_path)
    with pytest.raises(CheckpointError, match='does not exist'):
        read_file(tmp_path / 'none.pth')
    monkeypatch.setenv('HOME', str(tmp_path))
    path = saved(dict(a=torch.ones(1)))
    assert 'a' in read_file('~/weights.pth')
    assert read_file(path, map_location='meta')['a'].is_meta


def test_safetensors_only_where_installed(tmp_path, monkeypatch):
    (tmp_path / 'weights.safetensors').write_bytes(b'x')
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(CheckpointError, match='pip install safetensors'):
        read_file(tmp_path / 'weights.safetensors')


def test_safetensors(tmp_path):
    torch_format = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'weights.safetensors'
    with pytest.raises(CheckpointError, match='does not exist'):
        read_file(path)
    meta = dict(dataset_meta=dict(classes=['a'], palette=[[1, 2, 3]]))
    torch_format.save_file(dict(a=torch.ones(2)), path, dict(meta=json.dumps(meta)))
    found = read_file(path)
    assert torch.equal(found['state_dict']['a'], torch.ones(2))
    assert found['meta']['dataset_meta'] == dict(classes=['a'], palette=[(1, 2, 3)])
    content = path.read_bytes()
    for damaged in (content[:-3], b'', b'\xff' * 8, (1 << 40).to_bytes(8, 'little') + b'{}'):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match='no safetensors file'):
            read_file(path)
    for text in ('[' * 100_000, '{"a": ', 'NaN', '[1]'):
        torch_format.save_file(dict(a=torch.ones(2)), path, dict(meta=text))
        with pytest.raises(CheckpointError, match=r'weights\.safetensors') as caught:
            read_file(path)
        assert len(str(caught.value)) < 400
