"""Official weights of every layout: recognised, renamed, and what is said of others."""

import argparse
import json

import golden
import pytest
import torch
from golden import OTHER_NAMES, in_layout

from coc_mm.checkpoints import convert_official
from coc_mm.checkpoints.official import (
    LAYOUTS,
    convert_in_memory,
    layout_of,
    recognise,
    rename_backbone,
    rename_before_loading,
)
from coc_mm.errors import CheckpointError
from coc_mm.models import ContextCluster

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
LINEAR = ('token_mixer.proj.weight', 'mlp.fc1.weight')  # 1x1 convolutions are squeezed


@pytest.mark.parametrize('layout', OTHER_NAMES)
@pytest.mark.parametrize('wrapper', ['', 'module.', 'backbone.', 'module.backbone.'])
def test_every_kind_of_name(layout, wrapper):
    given = in_layout(layout, {name: torch.randn(3, 2, 1, 1) for name in NAMES})
    given = {wrapper + name.removeprefix('backbone.'): v for name, v in given.items()}
    renamed, others = rename_backbone(given, LAYOUTS[layout])
    assert not others
    assert renamed.keys() == set(NAMES.values())
    values = [value for name, value in given.items() if not name.endswith('fea_pos')]
    for (name, ours), value in zip(NAMES.items(), values, strict=True):
        assert torch.equal(renamed[ours], value.flatten(1) if name.endswith(LINEAR) else value)


@pytest.mark.parametrize('layout', OTHER_NAMES)
def test_layouts_are_recognised_and_mean_the_same(layout, tiny):
    given = in_layout(layout, tiny)
    assert layout_of(given).name == layout
    expected, converted = convert_official(tiny), convert_official(given)
    assert len(converted) == 236
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    official = recognise(dict(state_dict=given, meta={}), f'{layout}.pth')
    assert (official.layout.name, official.task) == (layout, 'classification')
    assert official.archs == ['tiny', 'tiny2', 'tiny_plain']
    expected = ('similarity', 'assumed') if layout == 'released' else ('count', 'as all files of')
    assert official.denominator == expected[0]
    assert official.denominator_is.startswith(expected[1])


def test_names_of_others():
    assert layout_of(['module.backbone.network.6.11.token_mixer.v.bias', 'neck.weight'])
    assert layout_of(['xnetwork.0.0.token_mixer.v.bias', 'head.weight']) is None
    assert layout_of(['network.0.0.norm1.weight', 'head.fc.weight']) is None


def test_what_has_no_counterpart_keeps_its_name():
    lonely = 'module.network.0.0.token_mixer.f.bias'
    strangers = ['module.network.7.0.norm1.weight', 'network.1.0.norm1.weight', 'norm1.weight']
    strangers += ['module.norm2.weight.more', 'xnetwork.3.proj.bias', 'network.2.proj.weight']
    # Beside them the counterparts of others: a pair is a pair of the same block and leaf.
    pair = {f'network.0.1.token_mixer.{s}.bias': torch.ones(1) for s in 'fv'}
    given = {name: torch.zeros(1) for name in [lonely, *strangers]} | pair
    renamed, others = rename_backbone(given, LAYOUTS['released'])
    assert set(renamed) == {'stages.0.blocks.1.mixer.in_proj.bias'}
    assert set(others) == {lonely, *strangers}
    assert all(others[name] is given[name] for name in others)


MIXER = {f'module.network.0.0.token_mixer.{s}.weight': torch.zeros(2, 2, 1, 1) for s in 'fv'}


def complaint(weights, task='classification'):
    with pytest.raises(ValueError, match=r'not the official weights|unknown task') as caught:
        convert_official(weights, task)
    return str(caught.value)


def test_complaints_name_everything_at_once():
    lonely = {f'network.{i}.0.token_mixer.f.bias': torch.zeros(2) for i in (0, 2)}
    strangers = {name: torch.zeros(1) for name in ('neck.a', 'fc.b')}
    start = 'not the official weights of a Context Cluster for '
    alone = '\none of two projections, or both of different shapes: ' + ', '.join(lonely)
    for task, unknown in (
        ('classification', '\n2 unknown keys: neck.a, fc.b'),
        ('detection', '\n1 unknown keys: fc.b'),
    ):
        found = complaint({**MIXER, **lonely, **strangers}, task)
        assert found == start + f'{task}:{unknown}{alone}'
    assert complaint({'module.fc.b': torch.zeros(1)}) == (
        f'{start}classification: no token mixer among the keys (fc.b, ...)'
    )
    assert "unknown task 'posing': choose one of ('classification'" in complaint(MIXER, 'posing')


def test_heads_of_every_task():
    ours = 'backbone.stages.0.blocks.0.mixer.in_proj.weight'
    head = {f'module.head.{leaf}': torch.randn(2) for leaf in ('weight', 'bias')}
    given = {**MIXER, **head}
    converted = convert_official(given)
    assert set(converted) == {ours, 'head.fc.weight', 'head.fc.bias'}
    assert converted['head.fc.bias'] is head['module.head.bias']
    assert len(given) == 4, 'the dict of the caller was changed'
    parts = ('neck', 'rpn_head', 'roi_head', 'bbox_head', 'decode_head', 'auxiliary_head')
    heads = {f'module.{part}.conv.weight': torch.randn(1) for part in parts}
    for task in ('detection', 'segmentation'):
        converted = convert_official({**MIXER, **heads}, task)
        assert set(converted) == {ours, *(f'{part}.conv.weight' for part in parts)}
        assert converted['neck.conv.weight'] is heads['module.neck.conv.weight']
    with pytest.raises(ValueError, match=r'6 unknown keys: neck\.conv\.weight'):
        convert_official({**MIXER, **heads})


def test_renamed_in_place_below_the_prefix():
    mixer = {f'a.network.0.0.token_mixer.{s}.bias': torch.zeros(2) for s in 'fv'}
    rest = {'a.network.7': torch.zeros(1), 'b.network.0.0.token_mixer.f.bias': torch.zeros(1)}
    state_dict = {**mixer, **rest, 'a.norm.bias': torch.zeros(2)}
    rename_before_loading(state_dict, 'a.', {})
    joined = 'a.stages.0.blocks.0.mixer.in_proj.bias'
    assert set(state_dict) == {*rest, joined, 'a.norm3.bias'}
    ours = {'a.norm3.bias': torch.zeros(2), 'a.norm.bias': torch.zeros(2)}
    rename_before_loading(given := dict(ours), 'a.', {})
    assert list(given) == list(ours)


def test_load_state_dict_takes_official_names(tiny):
    weights = {name: value for name, value in tiny.items() if not name.startswith('head.')}
    model = ContextCluster('tiny')
    given = dict(weights)
    model.load_state_dict(given)
    assert given.keys() == weights.keys(), 'the dict of the caller was changed'
    weights.pop('network.0.0.token_mixer.f.bias')
    keys = model.load_state_dict(weights, strict=False)
    assert keys.unexpected_keys == ['network.0.0.token_mixer.v.bias']
    assert 'stages.0.blocks.0.mixer.in_proj.bias' in keys.missing_keys


def archive(weights, **more):
    """What timm's training script saves."""
    options = argparse.Namespace(lr=1e-3, **more.pop('args', dict(model='coc_tiny')))
    wrapped = {f'module.{name}': value for name, value in weights.items()}
    return dict(epoch=309, state_dict=wrapped, optimizer=dict(state={}), args=options, **more)


def test_the_model_is_told_by_archive_or_name_or_asked_for(tiny):
    for name, arch in (('coc_tiny_plain_8xb256_ep300', 'tiny_plain'), ('coc-tiny', 'tiny')):
        assert recognise(tiny, f'/a/{name}.pth').arch() == arch
    with pytest.raises(CheckpointError, match=r'tiny, tiny2, tiny_plain alike.*--arch'):
        recognise(tiny, 'bare.pth').arch()
    official = recognise(archive(tiny), 'x.pth.tar')
    assert official.task == 'classification'
    assert (official.arch(), official.arch('tiny2')) == ('tiny', 'tiny2')
    assert official.weights.keys() == tiny.keys()
    with pytest.raises(CheckpointError, match='--arch small does not fit'):
        official.arch('small')
    with pytest.raises(CheckpointError, match='--proposals is for detectors'):
        official.proposals(2)


@pytest.mark.parametrize('arch', ContextCluster.arch_zoo)
def test_every_arch_is_recognised(arch):
    shapes = json.loads((golden.FOLDER / 'keys' / f'coc_{arch}.json').read_text())
    weights = {k: torch.zeros(1).expand(shape) for k, shape in shapes.items()}
    assert arch in recognise(weights, 'bare.pth').archs


def test_moving_average_by_choice(tiny):
    averaged = {f'module.{name}': value + 1 for name, value in tiny.items()}
    checkpoint = archive(tiny, state_dict_ema=averaged)
    name = 'patch_embed.proj.bias'
    plain = recognise(checkpoint, 'x')
    assert torch.equal(plain.weights[name], tiny[name])
    assert '--ema takes' in plain.remarks[0]
    assert torch.equal(recognise(checkpoint, 'x', ema=True).weights[name], tiny[name] + 1)
    alone = recognise(dict(state_dict_ema=averaged), 'x')
    assert torch.equal(alone.weights[name], tiny[name] + 1)
    assert alone.remarks == ['weights: state_dict_ema (the moving average)']
    with pytest.raises(CheckpointError, match='no averaged weights'):
        recognise(archive(tiny), 'x', ema=True)


SIGNS = [  # commit, date, layout -> denominator, beginning of the reason
    ('406a6c5c0ffee', None, 'released', 'count', 'inferred: trained with commit 406a6c5'),
    ('82e8c1a', 'Fri Jun  2 10:20:30 2023', 'released', 'count', 'inferred: trained with commit'),
    ('21f0018', None, 'released', 'similarity', 'assumed: with code about commit 21f0018'),
    ('be9a03b', None, 'released', 'similarity', 'inferred: trained with commit be9a03b'),
    ('406a6c5', None, 'openmixup', 'count', 'as all files of the openmixup layout'),
    ('3ccb0b6', None, 'submission', 'count', 'as all files of the submission layout'),
    (None, 'Mon Mar  6 10:20:30 2023', 'released', 'count', 'inferred: trained on 2023-03-06'),
    (None, 'Wed May 31 10:20:30 2023', 'released', 'similarity', 'inferred: trained on 2023-05'),
    ('unknown', 'some day', 'released', 'similarity', 'assumed, as of the release'),
]


@pytest.mark.parametrize(('commit', 'time', 'layout', 'expected', 'why'), SIGNS)
def test_the_formula_by_layout_commit_and_date(tiny, commit, time, layout, expected, why):
    checkpoint = archive(in_layout(layout, tiny), args=dict(git_id=commit), meta=dict(time=time))
    official = recognise(checkpoint, 'x.pth')
    assert official.denominator == expected
    assert official.denominator_is.startswith(why)


def test_dense_models_tell_their_centers():
    weights = {f'backbone.{k}': v for k, v in golden.official_state_dict('small_dense').items()}
    assert recognise(weights, 'x').task == 'detection'
    weights['rpn_head.rpn_conv.weight'] = torch.zeros(1)
    weights['ema_backbone_patch_embed_proj_bias'] = torch.zeros(1)
    meta = dict(config="backbone=dict(type='context_cluster_small_feat5')")
    official = recognise(dict(meta=meta, state_dict=weights), 'latest.pth')
    assert (official.task, official.arch(), official.proposals()) == ('detection', 'small', 5)
    assert official.proposals(2) == 2
    assert 'left out 1 buffers' in official.remarks[0]
    assert official.record()['backbone'] == dict(denominator='similarity', proposals=5)
    with pytest.raises(CheckpointError, match='--proposals 2, 5 or 7'):
        recognise(dict(meta={}, state_dict=weights), 'latest.pth').proposals()


def test_converted_in_memory_with_a_record(tiny, capsys):
    found = convert_in_memory(archive(in_layout('submission', tiny)), 'x.pth')
    assert found['state_dict'].keys() == convert_official(tiny).keys()
    assert found['state_dict']._metadata == {'backbone': dict(denominator='count')}
    assert found['meta']['coc_mm']['backbone'] == dict(denominator='count')
    assert found['meta']['coc_mm']['layout'] == 'submission'
    assert capsys.readouterr().out.startswith(
        'x.pth: official weights, submission layout; denominator: count (as all files of'
    )
    assert convert_in_memory(found, 'x.pth') is found
    with pytest.raises(CheckpointError, match=r'x\.pth: not the official.*\n1 unknown keys: fc\.b'):
        convert_in_memory({**tiny, 'fc.b': torch.zeros(1)}, 'x.pth')
