"""Starting weights by ``init_cfg``, whatever names they have."""

import os

import pytest
import torch
from golden import OTHER_NAMES, in_layout
from hostile import Call
from mmengine.model import BaseModule, PretrainedInit
from torch import nn

from coc_mm.checkpoints import convert_official
from coc_mm.checkpoints.pretrained import check_pretrained
from coc_mm.errors import CheckpointError, UserError
from coc_mm.models import ContextCluster

MINI = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), mlp_ratios=(2, 2, 2, 2), heads=(2, 2, 2, 2))
MINI['head_dim'] = 4


@pytest.mark.parametrize('layout', OTHER_NAMES)
@pytest.mark.parametrize('prefix', [None, 'backbone.', 'backbone'])
@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit, 'coc_mm.SafePretrained'])
def test_official_files(layout, prefix, kind, tiny, saved, capsys):
    path = str(saved(dict(state_dict=in_layout(layout, tiny)), 'x.pth.tar'))
    init_cfg = dict(type=kind, checkpoint=path) | ({'prefix': prefix} if prefix else {})
    model = ContextCluster('tiny', init_cfg=init_cfg, out_indices=(0, 3))
    check_pretrained(model, [path])
    assert 'weights match' not in capsys.readouterr().out, 'nothing is missing but a norm'
    model = ContextCluster('tiny', init_cfg=[dict(type='Normal', layer='Linear'), init_cfg])
    model.init_weights()
    loaded = model.state_dict()
    for name, value in convert_official(tiny).items():
        if name.startswith('backbone.'):
            assert torch.equal(loaded.pop(name.removeprefix('backbone.')), value), name
    assert not loaded


@pytest.mark.parametrize('saved_under', ['backbone.', ''])
@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_files_of_ours(saved_under, prefix, saved):
    state_dict = ContextCluster(MINI).state_dict()
    path = saved(dict(state_dict={saved_under + k: v for k, v in state_dict.items()}))
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    model = ContextCluster(MINI, init_cfg=init_cfg)
    model.init_weights()
    assert all(torch.equal(value, state_dict[k]) for k, value in model.state_dict().items())


def test_read_safely_and_told_if_in_part(saved, tmp_path, capsys):
    model = ContextCluster(MINI)
    weights = model.state_dict()
    path = str(saved(dict(state_dict=weights, x=Call(os.mkdir, str(tmp_path / 'RUN')))))
    init_cfg = dict(type='Pretrained', checkpoint=path)
    with pytest.raises(CheckpointError, match='refused'):
        ContextCluster(MINI, init_cfg=init_cfg).init_weights()
    del weights['stages.0.blocks.0.norm1.bias']
    weights['patch_embed.proj.weight'] = torch.zeros(8, 6, 4, 4)
    weights._metadata['']['denominator'] = 'count'
    saved(dict(state_dict=weights))
    with pytest.warns(UserWarning, match="trained with denominator='count'"):
        ContextCluster(MINI, init_cfg=init_cfg, denominator='similarity').init_weights()
    (model := ContextCluster(MINI, init_cfg=init_cfg)).init_weights()
    assert model.blocks[3][0].mixer.denominator == 'count'
    assert model.state_dict()._metadata['']['denominator'] == 'count', 'training keeps it'
    said = capsys.readouterr().out
    assert '1 of another shape (patch_embed.proj.weight is 8x6x4x4' in said
    assert '1 missing (stages.0.blocks.0.norm1.bias)' in said


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_starting_weights_under_another_prefix(saved, prefix):
    path = saved({f'encoder.{k}': v for k, v in ContextCluster(MINI).state_dict().items()})
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    with pytest.raises(CheckpointError, match='it has encoder'):
        ContextCluster(MINI, init_cfg=init_cfg).init_weights()


class _Part(BaseModule):
    def __init__(self, width, init_cfg):
        super().__init__(init_cfg)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))


def _whole(path, width=2, prefix='backbone.', listed=False):
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix=prefix)
    return nn.ModuleDict(dict(part=_Part(width, [init_cfg] if listed else init_cfg)))


@pytest.mark.parametrize('listed', [False, True])
def test_starting_weights_of_another_module(saved, capsys, listed):
    state = _Part(2, None).state_dict()
    path = str(saved({f'backbone.{name}': value for name, value in state.items()}))
    whole = _whole(path, listed=listed)
    check_pretrained(whole, [path])
    assert capsys.readouterr().out == ''
    whole['part'].init_weights()
    assert torch.equal(whole['part'].layers[1].weight, state['layers.1.weight'])
    with pytest.raises(UserError, match='of another model than part'):
        check_pretrained(_whole(path, width=5, listed=listed), [path])
    with pytest.raises(UserError, match=r"no weights under the prefix 'neck\.'"):
        check_pretrained(_whole(path, prefix='neck', listed=listed), [path])
    with pytest.raises(UserError, match=r'none\.pth, which does not exist'):
        check_pretrained(whole, ['none.pth'])
    saved(state | {'layers.2.weight': torch.zeros(7, 2)})
    check_pretrained(_whole(path, prefix=None, listed=listed), [path])
    assert 'init_cfg of part' in capsys.readouterr().out
