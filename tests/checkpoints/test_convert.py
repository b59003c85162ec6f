"""The mapping of official weights, name by name, and what it says of others."""

import warnings

import pytest
import torch

from coc_mm.checkpoints import convert_official
from coc_mm.checkpoints.official_names import (
    is_official,
    read_pretrained_safely,
    rename_before_loading,
    rename_official,
)

# The mapping as somebody reads it in the two modules, not as the rules compute it.
NAMES = {
    'patch_embed.proj.weight': 'patch_embed.proj.weight',
    'patch_embed.proj.bias': 'patch_embed.proj.bias',
    'network.0.0.layer_scale_1': 'stages.0.blocks.0.layer_scale1',
    'network.0.2.layer_scale_2': 'stages.0.blocks.2.layer_scale2',
    'network.2.10.norm1.weight': 'stages.1.blocks.10.norm1.weight',
    'network.2.1.norm2.bias': 'stages.1.blocks.1.norm2.bias',
    'network.4.3.token_mixer.sim_alpha': 'stages.2.blocks.3.mixer.sim_alpha',
    'network.6.0.token_mixer.sim_beta': 'stages.3.blocks.0.mixer.sim_beta',
    'network.6.1.token_mixer.proj.weight': 'stages.3.blocks.1.mixer.out_proj.weight',
    'network.6.1.token_mixer.proj.bias': 'stages.3.blocks.1.mixer.out_proj.bias',
    'network.4.0.mlp.fc1.weight': 'stages.2.blocks.0.mlp.fc1.weight',
    'network.4.0.mlp.fc2.bias': 'stages.2.blocks.0.mlp.fc2.bias',
    'network.1.proj.weight': 'stages.1.reducer.proj.weight',
    'network.3.proj.bias': 'stages.2.reducer.proj.bias',
    'network.5.proj.weight': 'stages.3.reducer.proj.weight',
    'norm0.weight': 'norm0.weight',
    'norm2.bias': 'norm1.bias',
    'norm4.weight': 'norm2.weight',
    'norm6.bias': 'norm3.bias',
    'norm.weight': 'norm3.weight',
}


@pytest.mark.parametrize('wrapper', ['', 'module.', 'backbone.', 'module.backbone.'])
def test_every_kind_of_name(wrapper):
    given = {f'{wrapper}{name}': torch.randn(3, 2, 1, 1) for name in NAMES}
    renamed, others = rename_official(given)
    assert not others
    assert renamed.keys() == set(NAMES.values())
    for name, ours in NAMES.items():
        value = given[f'{wrapper}{name}']
        # 1x1 convolutions alone become matrices.
        value = value.flatten(1) if name.endswith('token_mixer.proj.weight') else value
        assert torch.equal(renamed[ours], value), name
    assert is_official([f'{wrapper}network.6.11.token_mixer.v.bias', 'neck.weight'])
    assert not is_official([f'x{wrapper}network.0.0.token_mixer.v.bias', 'head.weight'])


def test_features_come_before_values():
    start = 'backbone.network.2.1.token_mixer.'
    given = {
        start + name: torch.randn(shape)
        for name, shape in [
            ('v.weight', (4, 3, 1, 1)),
            ('v.bias', (4,)),
            ('f.bias', (4,)),
            ('f.weight', (4, 3, 1, 1)),
        ]
    }
    renamed, others = rename_official(given)
    assert not others
    assert set(renamed) == {f'stages.1.blocks.1.mixer.in_proj.{n}' for n in ('weight', 'bias')}
    for leaf in ('weight', 'bias'):
        expected = [given[f'{start}{space}.{leaf}'].reshape(4, -1) for space in 'fv']
        actual = renamed[f'stages.1.blocks.1.mixer.in_proj.{leaf}']
        assert actual.dim() == (2 if leaf == 'weight' else 1)
        assert torch.equal(actual.reshape(8, -1), torch.cat(expected))


def test_what_has_no_counterpart_keeps_its_name():
    lonely = 'module.network.0.0.token_mixer.f.bias'
    strangers = ['module.network.7.0.norm1.weight', 'network.1.0.norm1.weight', 'norm1.weight']
    strangers += ['module.norm2.weight.more', 'xnetwork.3.proj.bias', 'network.2.proj.weight']
    # Beside them the counterparts of others: a pair is a pair of the same block and leaf.
    pair = {f'network.0.1.token_mixer.{s}.bias': torch.ones(1) for s in 'fv'}
    given = {name: torch.zeros(1) for name in [lonely, *strangers]} | pair
    renamed, others = rename_official(given)
    assert set(renamed) == {'stages.0.blocks.1.mixer.in_proj.bias'}
    assert set(others) == {lonely, *strangers}
    assert all(others[name] is given[name] for name in others)


def complaint(weights, task='classification'):
    with pytest.raises(ValueError, match=r'not the official weights|unknown task') as caught:
        convert_official(weights, task)
    return str(caught.value).splitlines()


def test_complaints_name_everything_at_once():
    mixer = {f'network.0.0.token_mixer.{s}.weight': torch.zeros(2, 2, 1, 1) for s in 'fv'}
    lonely = {f'network.{i}.0.token_mixer.f.bias': torch.zeros(2) for i in (0, 2)}
    strangers = {name: torch.zeros(1) for name in ('neck.a', 'fc.b')}
    assert complaint({**mixer, **lonely, **strangers}) == [
        'not the official weights of a Context Cluster for classification:',
        '2 unknown keys: neck.a, fc.b',
        'only one of the two projections for: '
        'network.0.0.token_mixer.f.bias, network.2.0.token_mixer.f.bias',
    ]
    assert complaint({**mixer, **lonely}, 'detection') == [
        'not the official weights of a Context Cluster for detection:',
        'only one of the two projections for: '
        'network.0.0.token_mixer.f.bias, network.2.0.token_mixer.f.bias',
    ]
    for task in ('segmentation', 'point_cloud'):
        assert complaint({'module.fc.b': torch.zeros(1)}, task) == [
            f'not the official weights of a Context Cluster for {task}:',
            'no token mixer among the keys',
            '1 unknown keys: fc.b',
        ]
    assert complaint({'classifier.0.weight': torch.zeros(1)}, 'point_cloud') == [
        'not the official weights of a Context Cluster for point_cloud:',
        'no token mixer among the keys',
    ]
    cluster = 'pre_blocks_list.0.operation.0.'
    assert complaint({f'{cluster}fc_v.weight': torch.zeros(1), 'fc.b': 0}, 'point_cloud') == [
        'not the official weights of a Context Cluster for point_cloud:',
        '1 unknown keys: fc.b',
    ]
    assert complaint(mixer, 'posing') == [
        "unknown task 'posing': choose one of "
        "('classification', 'detection', 'segmentation', 'point_cloud')"
    ]


def test_heads_of_every_task():
    mixer = {f'module.network.0.0.token_mixer.{s}.bias': torch.zeros(2) for s in 'fv'}
    ours = 'backbone.stages.0.blocks.0.mixer.in_proj.bias'
    head = {f'module.head.{leaf}': torch.randn(2) for leaf in ('weight', 'bias')}
    given = {**mixer, **head}
    converted = convert_official(given)
    assert set(converted) == {ours, 'head.fc.weight', 'head.fc.bias'}
    assert converted['head.fc.bias'] is head['module.head.bias']
    assert len(given) == 4, 'the dict of the caller was changed'
    assert set(convert_official({**mixer, 'head.bias': head['module.head.bias']})) == {
        ours,
        'head.fc.bias',
    }
    parts = ('neck', 'rpn_head', 'roi_head', 'bbox_head', 'decode_head', 'auxiliary_head')
    heads = {f'module.{part}.conv.weight': torch.randn(1) for part in parts}
    for task in ('detection', 'segmentation'):
        converted = convert_official({**mixer, **heads}, task)
        assert set(converted) == {ours, *(f'{part}.conv.weight' for part in parts)}
        assert converted['neck.conv.weight'] is heads['module.neck.conv.weight']
    with pytest.raises(ValueError, match=r'6 unknown keys: neck\.conv\.weight'):
        convert_official({**mixer, **heads})


def test_renamed_in_place_below_the_prefix():
    mixer = {f'a.network.0.0.token_mixer.{s}.bias': torch.zeros(2) for s in 'fv'}
    rest = {'a.network.7': torch.zeros(1), 'b.network.0.0.token_mixer.f.bias': torch.zeros(1)}
    state_dict = {**mixer, **rest, 'a.norm.bias': torch.zeros(2)}
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # nothing is recorded: nothing to warn of
        rename_before_loading(state_dict, 'a.', {})
    assert set(state_dict) == {
        *rest,
        'a.stages.0.blocks.0.mixer.in_proj.bias',
        'a.norm3.bias',
    }
    ours = {'a.norm3.bias': torch.zeros(2), 'a.norm.bias': torch.zeros(2)}
    rename_before_loading(given := dict(ours), 'a.', {})
    assert list(given) == list(ours)


def test_pretrained_entries_come_last_and_safe():
    class PretrainedInit:
        pass

    normal, constant = dict(type='Normal', std=0.1), dict(type='Constant', val=1)
    given = [
        dict(type='Pretrained', checkpoint='a.pth', prefix='backbone.'),
        normal,
        dict(type=PretrainedInit, checkpoint='b.pth'),
        dict(type='PretrainedInit', checkpoint='c.pth'),
        constant,
    ]
    kept = [dict(entry) for entry in given]
    assert read_pretrained_safely(given) == [
        normal,
        constant,
        dict(type='coc_mm.SafePretrained', checkpoint='a.pth', prefix='backbone.'),
        dict(type='coc_mm.SafePretrained', checkpoint='b.pth'),
        dict(type='coc_mm.SafePretrained', checkpoint='c.pth'),
    ]
    assert given == kept
    assert read_pretrained_safely(normal) == [normal]
    assert read_pretrained_safely(None) == []
