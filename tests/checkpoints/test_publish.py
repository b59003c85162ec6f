import pytest
import torch
from mmengine.logging import MessageHub

from coc_mm.checkpoints.publish import publish
from coc_mm.checkpoints.safe_pickle import read_file
from coc_mm.errors import CheckpointError


def test_publishing(saved, tmp_path):
    hub = MessageHub('publish')
    hub.update_scalar('train/loss', 1.0)
    average = {'module.w': torch.ones(2), 'steps': torch.tensor(5)}
    meta = dict(cfg='a = 1', dataset_meta=dict(classes=['x']), seed=1, epoch=3)
    content = dict(
        meta=meta,
        state_dict={'w': torch.zeros(2)},
        ema_state_dict=average,
        optimizer=dict(state={}),
        message_hub=hub.state_dict(),
    )
    source = str(saved(content, 'epoch_3.pth'))
    path = publish(source, 'model.pth')
    assert [str(path)] == [x.name for x in tmp_path.glob('model-????????.pth')]
    loaded = read_file(path)
    assert loaded.keys() == {'meta', 'state_dict'}
    assert loaded['meta'] == dict(cfg='a = 1', dataset_meta=dict(classes=['x']), epoch=3)
    assert torch.equal(loaded['state_dict']['w'], torch.zeros(2))
    # The same weights have the same name; other weights, here those of training, another.
    assert publish(str(path), str(path), force=True) == path
    with pytest.raises(CheckpointError, match='--force'):
        publish(source, 'model.pth')
    other = publish(source, 'model.pth', ema=False)
    assert other != path
    assert list(read_file(other)['state_dict']) == ['w']
    assert torch.equal(read_file(other)['state_dict']['w'], torch.ones(2))


def test_the_average_of_timm_is_called_otherwise(saved):
    source = str(saved(dict(state_dict={'w': torch.zeros(2)}, state_dict_ema={'w': torch.ones(2)})))
    for ema in (True, False):
        found = read_file(publish(source, f'ema_{ema}.pth', ema))['state_dict']['w']
        assert torch.equal(found, torch.full((2,), float(ema)))


def test_publishing_refuses(saved):
    source = str(saved(dict(optimizer=dict(state={}), state_dict={})))
    with pytest.raises(CheckpointError, match='holds no weights to publish'):
        publish(source, 'a.pth')
    saved(dict(state_dict={'w': torch.zeros(2)}))
    with pytest.raises(CheckpointError, match='without EMA'):
        publish(source, 'a.pth', ema=False)
