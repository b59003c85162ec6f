"""Layer-wise decay of the learning rate under the three default scopes."""

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.optim.scheduler import LinearLR
from mmengine.registry import MODELS, DefaultScope
from tiny_projects import SCOPES, write_project
from torch import nn

from coc_mm.engine import LayerDecayOptimWrapperConstructor


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """The models' configs of tiny projects."""
    folder = tmp_path_factory.mktemp('projects')
    return {s: Config.fromfile(write_project(folder / s, s)).model for s in SCOPES}


# The stem, four blocks, and what is outside: six depths.
DEPTHS = {
    'backbone.patch_embed.proj.weight': 0,
    'backbone.stages.0.blocks.0.mixer.in_proj.weight': 1,
    'backbone.stages.1.reducer.proj.weight': 2,
    'backbone.stages.1.blocks.0.mlp.fc1.weight': 2,
    'backbone.stages.2.blocks.0.mixer.sim_alpha': 3,
    'backbone.stages.3.blocks.0.layer_scale1': 4,
    'backbone.norm3.weight': 4,
}


def build(model, scope='mmpretrain', **paramwise):
    paramwise.setdefault('layer_decay_rate', 0.5)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(model) if isinstance(model, dict) else model
        wrapper = build_optim_wrapper(
            model,
            ConfigDict(
                type='OptimWrapper',
                optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
                constructor='coc_mm.LayerDecayOptimWrapperConstructor',
                paramwise_cfg=paramwise,
            ),
        )
    # Those of the wrapper have one more, for the log.
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {names[id(p)]: g for g in wrapper.optimizer.param_groups for p in g['params']}
    return model, wrapper, groups


@pytest.mark.parametrize('scope', SCOPES)
def test_rates_fall_towards_the_input(models, scope):
    model, wrapper, groups = build(models[scope], scope, norm_decay_mult=0.0, flat_decay_mult=0.0)
    assert groups.keys() == dict(model.named_parameters()).keys()
    assert len(groups) > 60
    for name, depth in DEPTHS.items():
        assert groups[name]['lr'] == pytest.approx(0.1 * 0.5 ** (5 - depth)), name
    for name, group in groups.items():
        if not name.startswith('backbone.'):
            assert group['lr'] == 0.1, name
        ndim = dict(model.named_parameters())[name].ndim
        assert group.get('weight_decay') == (0.05 if ndim > 1 else 0.0), name
    # Six depths, each with and without weight decay.
    assert len(wrapper.optimizer.param_groups) == 12


@pytest.mark.parametrize('scope', SCOPES)
def test_a_rate_of_one_is_the_default_constructor(models, scope):
    _, wrapper, groups = build(models[scope], scope, layer_decay_rate=1)
    assert len(wrapper.optimizer.param_groups) == 1
    assert all(g['lr'] == 0.1 and g['weight_decay'] == 0.05 for g in groups.values())


def test_schedulers_keep_the_ratios(models):
    _, wrapper, groups = build(models['mmpretrain'])
    first, last = groups['backbone.patch_embed.proj.weight'], groups['head.fc.weight']
    scheduler = LinearLR(wrapper, start_factor=0.1, begin=0, end=5)
    for _ in range(3):
        assert first['lr'] == pytest.approx(last['lr'] / 32)
        wrapper.step()
        scheduler.step()
    assert 0.01 < last['lr'] < 0.1


def test_keeps_custom_keys_and_frozen_stages(models):
    config = models['mmpretrain']
    config = dict(config, backbone=dict(config.backbone, frozen_stages=1))
    _, _, groups = build(config, custom_keys={'sim_': dict(lr_mult=10.0, decay_mult=0.0)})
    assert 'backbone.patch_embed.proj.weight' not in groups
    group = groups['backbone.stages.3.blocks.0.mixer.sim_alpha']
    assert group['lr'] == pytest.approx(0.1 * 10 * 0.5)
    assert group['weight_decay'] == 0
    assert groups['backbone.stages.3.blocks.0.mixer.in_proj.weight']['lr'] == pytest.approx(0.05)


def test_sees_through_a_wrapper_of_several_processes(models):
    wrapped = nn.Module()
    wrapped.module, _, _ = build(models['mmpretrain'])
    cfg = dict(optimizer=dict(type='SGD', lr=0.1))
    wrapper = LayerDecayOptimWrapperConstructor(cfg, dict(layer_decay_rate=0.5))(wrapped)
    assert len(wrapper.optimizer.param_groups) == 6
    assert {type(p) for g in wrapper.optimizer.param_groups for p in g['params']} == {nn.Parameter}


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.5'])
def test_refuses_a_rate(models, rate):
    with pytest.raises(ValueError, match=r'layer_decay_rate must be above 0.*got'):
        build(models['mmpretrain'], layer_decay_rate=rate)


def test_refuses_what_has_no_depths_or_no_lr():
    with pytest.raises(ValueError, match='needs a backbone with a method get_layer_depth'):
        build(nn.Sequential(nn.Linear(2, 2)))
    optimizer = dict(optimizer=dict(type='SGD'))
    with pytest.raises(ValueError, match='needs the optimizer to have an lr'):
        LayerDecayOptimWrapperConstructor(optimizer, dict(layer_decay_rate=0.5))
