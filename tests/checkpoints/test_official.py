"""Official checkpoints: recognised, read safely, loaded by ``init_cfg``, written whole."""

import argparse
import json
import os

import golden
import pytest
import torch

from coc_mm.checkpoints import convert_official
from coc_mm.checkpoints.load import load_checkpoint_safely
from coc_mm.checkpoints.official import read_official
from coc_mm.checkpoints.save import check_target, save_checkpoint
from coc_mm.errors import CheckpointError
from coc_mm.models import ContextCluster

MINI = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), mlp_ratios=(2, 2, 2, 2), heads=(2, 2, 2, 2))
MINI['head_dim'] = 4


class Trap:
    def __reduce__(self):
        return os.mkdir, ('trapped',)


@pytest.fixture(scope='module')
def tiny():
    return {k: v.float() for k, v in golden.official_state_dict('coc_tiny').items()}


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def archive(weights, **more):
    """Save as timm's training script does."""
    options = argparse.Namespace(model=more.pop('model', 'coc_tiny'), lr=1e-3)
    wrapped = {f'module.{name}': value for name, value in weights.items()}
    optimizer = dict(state={}, param_groups=[dict(lr=1e-3)])
    torch.save(
        dict(epoch=309, state_dict=wrapped, optimizer=optimizer, args=options, **more),
        'checkpoint.pth.tar',
    )
    return 'checkpoint.pth.tar'


def official_mini():
    """Give the weights of a small backbone official names, by the mapping itself."""
    official = {}
    for network in range(7):
        stage = network // 2
        dim, last = MINI['dims'][stage], MINI['dims'][max(stage - 1, 0)]
        if network % 2:
            dim, last = MINI['dims'][stage + 1], MINI['dims'][stage]
            official[f'network.{network}.proj.weight'] = torch.randn(dim, last, 3, 3)
            official[f'network.{network}.proj.bias'] = torch.randn(dim)
            continue
        start = f'network.{network}.0.'
        shapes = {
            **{f'layer_scale_{i}': (dim,) for i in (1, 2)},
            **{f'norm{i}.{leaf}': (dim,) for i in (1, 2) for leaf in ('weight', 'bias')},
            **{f'token_mixer.sim_{name}': (1,) for name in ('alpha', 'beta')},
            **{f'token_mixer.{s}.weight': (8, dim, 1, 1) for s in 'fv'},
            **{f'token_mixer.{s}.bias': (8,) for s in 'fv'},
            **{'token_mixer.proj.weight': (dim, 8, 1, 1), 'token_mixer.proj.bias': (dim,)},
            **{'mlp.fc1.weight': (2 * dim, dim), 'mlp.fc1.bias': (2 * dim,)},
            **{'mlp.fc2.weight': (dim, 2 * dim), 'mlp.fc2.bias': (dim,)},
        }
        official.update({start + name: torch.randn(shape) for name, shape in shapes.items()})
    official['patch_embed.proj.weight'] = torch.randn(8, 5, 4, 4)
    official['patch_embed.proj.bias'] = torch.randn(8)
    return official


def test_archive_tells_its_model(tiny):
    official = read_official(archive(tiny))
    assert official.task == 'classification'
    assert official.archs == ['tiny', 'tiny2', 'tiny_plain']
    assert official.arch() == 'tiny'
    assert official.arch('tiny2') == 'tiny2'
    assert official.denominator()[0] == 'similarity'
    assert official.denominator('count') == ('count', 'given')
    assert official.weights.keys() == tiny.keys()
    with pytest.raises(CheckpointError, match='--arch small does not fit'):
        official.arch('small')
    with pytest.raises(CheckpointError, match='--proposals is for detectors'):
        official.proposals(2)


def test_models_alike_are_asked_for(tiny):
    torch.save(tiny, 'bare.pth')
    with pytest.raises(CheckpointError, match=r'tiny, tiny2, tiny_plain alike.*--arch'):
        read_official('bare.pth').arch()


def test_every_arch_is_recognised():
    visited = 0
    for arch in ContextCluster.arch_zoo:
        shapes = json.loads((golden.FOLDER / 'keys' / f'coc_{arch}.json').read_text())
        torch.save({k: torch.zeros(1).expand(shape) for k, shape in shapes.items()}, 'bare.pth')
        assert arch in read_official('bare.pth').archs
        visited += 1
    assert visited == 7


def test_moving_average_by_choice(tiny):
    averaged = {f'module.{name}': value + 1 for name, value in tiny.items()}
    path = archive(tiny, state_dict_ema=averaged)
    name = 'patch_embed.proj.bias'
    plain = read_official(path)
    assert torch.equal(plain.weights[name], tiny[name])
    assert '--ema takes' in plain.remarks[0]
    assert torch.equal(read_official(path, ema=True).weights[name], tiny[name] + 1)
    with pytest.raises(CheckpointError, match='no averaged weights'):
        read_official(archive(tiny), ema=True)


DATES = [
    ('Mon Mar  6 10:20:30 2023', 'count'),
    ('Wed May 31 10:20:30 2023', None),
    ('some day', None),
]


@pytest.mark.parametrize(('time', 'expected'), DATES)
def test_dense_models_tell_by_date_and_config(time, expected):
    weights = {f'backbone.{k}': v for k, v in golden.official_state_dict('small_dense').items()}
    weights['rpn_head.rpn_conv.weight'] = torch.zeros(1)
    weights['ema_backbone_patch_embed_proj_bias'] = torch.zeros(1)
    meta = dict(time=time, config="backbone=dict(type='context_cluster_small_feat5')")
    torch.save(dict(meta=meta, state_dict=weights), 'latest.pth')
    official = read_official('latest.pth')
    assert (official.task, official.arch(), official.proposals()) == ('detection', 'small', 5)
    assert 'left out 1 buffers' in official.remarks[0]
    if expected:
        assert official.denominator()[0] == expected
    else:
        with pytest.raises(CheckpointError, match='--denominator count'):
            official.denominator()
    meta['config'] = ''
    torch.save(dict(meta=meta, state_dict=weights), 'latest.pth')
    with pytest.raises(CheckpointError, match='--proposals 2, 5 or 7'):
        read_official('latest.pth').proposals()


def test_point_clouds_keep_their_names():
    weights = golden.official_state_dict('pointmlp_coc')
    torch.save(dict(net={f'module.{k}': v for k, v in weights.items()}, epoch=1), 'best.pth')
    official = read_official('best.pth')
    assert official.task == 'point_cloud'
    converted = convert_official(official.weights, 'point_cloud')
    assert converted.keys() == weights.keys()
    assert len(converted) == 310
    with pytest.raises(ValueError, match='1 unknown keys: intruder'):
        convert_official({**weights, 'intruder': torch.zeros(1)}, 'point_cloud')
    with pytest.raises(ValueError, match='no token mixer'):
        convert_official({'classifier.0.weight': torch.zeros(1)}, 'point_cloud')


def test_what_is_refused(tiny):
    with pytest.raises(CheckpointError, match='for classification, not for --task detection'):
        read_official(archive(tiny), task='detection')
    torch.save(dict(state_dict=convert_official(tiny)), 'ours.pth')
    with pytest.raises(CheckpointError, match='nothing to convert'):
        read_official('ours.pth')
    with pytest.raises(CheckpointError, match='refused'):
        read_official(archive(tiny, hook=Trap()))
    assert not os.path.exists('trapped')


@pytest.mark.parametrize('wrapper', ['', 'backbone.', 'module.'])
@pytest.mark.parametrize('prefix', [None, 'backbone.', 'backbone'])
def test_official_files_as_starting_weights(wrapper, prefix):
    weights = official_mini()
    expected = convert_official(weights)
    saved = {wrapper + name: value for name, value in weights.items()}
    saved['neck.conv.weight'] = torch.zeros(1)
    archive(saved)
    init_cfg = dict(type='Pretrained', checkpoint='checkpoint.pth.tar')
    model = ContextCluster(MINI, init_cfg=init_cfg | ({'prefix': prefix} if prefix else {}))
    model.init_weights()
    assert model.init_cfg['type'] == 'Pretrained'
    loaded = model.state_dict()
    assert len(expected) == len(loaded) - 2  # but the norm of the output
    for name, value in expected.items():
        assert torch.equal(loaded[name.removeprefix('backbone.')], value), name


def test_starting_weights_are_read_safely():
    torch.save(dict(state_dict=official_mini(), hook=Trap()), 'trap.pth')
    model = ContextCluster(MINI, init_cfg=dict(type='Pretrained', checkpoint='trap.pth'))
    with pytest.raises(CheckpointError, match='refused'):
        model.init_weights()
    assert not os.path.exists('trapped')


def test_starting_weights_under_another_prefix():
    state_dict = {f'encoder.{k}': v for k, v in ContextCluster(MINI).state_dict().items()}
    torch.save(dict(state_dict=state_dict), 'other.pth')
    for prefix in (None, 'backbone.'):
        init_cfg = dict(type='Pretrained', checkpoint='other.pth', prefix=prefix)
        with pytest.raises(CheckpointError, match='it has encoder'):
            ContextCluster(MINI, init_cfg=init_cfg).init_weights()


def test_load_state_dict_takes_official_names():
    weights = official_mini()
    model = ContextCluster(MINI)
    given = dict(weights)
    keys = model.load_state_dict(given, strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (['norm3.weight', 'norm3.bias'], [])
    assert given.keys() == weights.keys(), 'the dict of the caller was changed'
    weights.pop('network.0.0.token_mixer.f.bias')
    keys = model.load_state_dict(weights, strict=False)
    assert keys.unexpected_keys == ['network.0.0.token_mixer.v.bias']
    assert 'stages.0.blocks.0.mixer.in_proj.bias' in keys.missing_keys


def test_another_denominator_is_told():
    state_dict = ContextCluster(MINI).state_dict()
    state_dict._metadata['']['denominator'] = 'count'
    torch.save(dict(state_dict=state_dict), 'old.pth')
    loaded = load_checkpoint_safely('old.pth')['state_dict']
    with pytest.warns(UserWarning, match='trained with denominator') as caught:
        ContextCluster(MINI).load_state_dict(loaded)
    assert str(caught[0].message) == (
        "these weights were trained with denominator='count', the backbone that loads them has "
        "'similarity': to predict with them as they are, build it with denominator='count'"
    )
    ContextCluster(MINI, denominator='count').load_state_dict(loaded)


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_files_are_written_whole(name, monkeypatch):
    if name.endswith('.safetensors'):
        pytest.importorskip('safetensors')
    path = check_target(f'new/{name}')
    content = dict(
        meta=dict(dataset_meta=dict(classes=['a', 'b'])), state_dict={'w': torch.ones(3)}
    )
    save_checkpoint(content, path)
    loaded = load_checkpoint_safely(path)
    assert torch.equal(loaded['state_dict']['w'], torch.ones(3))
    assert loaded['meta'] == content['meta']
    with pytest.raises(CheckpointError, match='--force'):
        check_target(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', full)
    if name.endswith('.safetensors'):
        monkeypatch.setattr('safetensors.torch.save_file', full)
    with pytest.raises(CheckpointError, match='No space left'):
        save_checkpoint(content, check_target(path, force=True))
    assert path.read_bytes() == before
    assert os.listdir('new') == [name]


def test_targets_refused():
    with pytest.raises(CheckpointError, match='is a folder'):
        check_target('.')
    with pytest.raises(CheckpointError, match=r'\.pth or \.safetensors'):
        check_target('weights.tar')
