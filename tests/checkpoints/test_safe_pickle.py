"""Files of the tools that people train with are read in full, other files refused by name."""

import argparse
import collections
import json
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hostile import GADGETS, Call
from mmengine.logging import MessageHub
from safetensors.torch import save_file

from coc_mm.checkpoints.safe_pickle import read_file
from coc_mm.errors import CheckpointError


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


@pytest.mark.parametrize('code', ['?', 'b', 'B', 'h', 'H', 'i', 'l', 'e', 'f', 'd', '>f4'])
def test_arrays_of_every_type_are_read(saved, code):
    array = np.arange(4).reshape(2, 2).astype(code)
    found = read_file(saved(dict(array=array, scalar=array[1, 1], fortran=array.T)))
    for name, expected in (('array', array), ('fortran', array.T)):
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == array.dtype
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
    deep = (1, (2, [dict(x=(np.arange(4),))]))
    found = read_file(saved(dict(deep=deep, loop=loop, empty=np.zeros((0, 4)))))
    np.testing.assert_array_equal(found['deep'][1][1][0]['x'][0], np.arange(4))
    assert found['loop'][1] is found['loop']
    np.testing.assert_array_equal(found['loop'][0], [0, 1])
    assert found['empty'].shape == (0, 4)


@pytest.mark.parametrize('gadget', GADGETS)
@pytest.mark.parametrize('zipped', [True, False])
def test_code_is_refused_by_name_and_not_run(gadget, zipped, saved):
    content = dict(state_dict={'a.weight': torch.ones(2), 'b.weight': GADGETS[gadget]})
    path = saved(content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'weights\.pth is refused: it holds .* may run'):
        read_file(path)


def array(dtype, shape=(1,)):
    state = (1, shape, dtype, False, b'A' * 8)
    return Call(np.zeros(1).__reduce__()[0], np.ndarray, (0,), b'b', state=state)


OTHERS = {
    'a container of other kind': collections.defaultdict(list, a=[1]),
    'more than is there': array(np.dtype('f8'), shape=(1 << 40,)),
    'objects': np.array([1, None], dtype=object),
    'memory as it was': Call(np.ndarray, (4,)),
    'no type': array('f8'),
}


@pytest.mark.parametrize('kind', OTHERS)
def test_other_objects_are_refused_and_arrays_rebuilt_from_bytes_alone(kind, saved):
    path = saved(dict(a=torch.ones(1), x=OTHERS[kind]))
    with pytest.raises(CheckpointError, match=r'weights\.pth is (refused|truncated or damaged)'):
        read_file(path)


@pytest.mark.parametrize('zipped', [True, False])
def test_every_cut_of_a_file_is_an_error(saved, zipped):
    content = dict(state_dict=dict(a=torch.ones(50)))
    path = saved(content, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r'weights\.pth'):
            read_file(path)


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
    path = tmp_path / 'x.zip'
    for member, compression, says in (
        ('s/constants.pkl', zipfile.ZIP_STORED, r'x\.zip is a TorchScript archive'),
        ('weights.pth', zipfile.ZIP_STORED, r'without a PyTorch checkpoint in it .*weights\.pth'),
        ('x/data.pkl', zipfile.ZIP_DEFLATED, r'declare 9999 bytes of content, or are compressed'),
    ):
        with zipfile.ZipFile(path, 'w', compression) as archive:
            archive.writestr(member, b'x' * 9999)
        with pytest.raises(CheckpointError, match=says):
            read_file(path)
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


def test_safetensors(tmp_path):
    path = tmp_path / 'weights.safetensors'
    with pytest.raises(CheckpointError, match='does not exist'):
        read_file(path)
    meta = dict(dataset_meta=dict(classes=['a'], palette=[[1, 2, 3]]))
    save_file(dict(a=torch.ones(2)), path, dict(meta=json.dumps(meta)))
    found = read_file(path)
    assert torch.equal(found['state_dict']['a'], torch.ones(2))
    assert found['meta']['dataset_meta'] == dict(classes=['a'], palette=[(1, 2, 3)])
    content = path.read_bytes()
    for damaged in (content[:-3], b''):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match='no safetensors file'):
            read_file(path)
    save_file(dict(a=torch.ones(2)), path, dict(meta='{"a": '))
    with pytest.raises(CheckpointError, match='no safetensors file'):
        read_file(path)
