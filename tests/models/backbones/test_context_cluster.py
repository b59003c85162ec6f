"""The backbone: arguments, inputs, outputs."""

import copy
import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from ops_cases import assert_all_close

from coc_mm.models import ContextCluster
from coc_mm.models.layers import ContextClusterMixer, GroupNorm1
from coc_mm.registry import MODELS

FIGURES = Path(__file__).parents[2] / 'data' / 'arch_options.json'
MINI = dict(
    depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), mlp_ratios=[2] * 4, heads=[2] * 4, head_dim=4
)


def build(arch=MINI, **kwargs):
    """Build a backbone whose mixers show: every parameter random, in evaluation mode."""
    model = ContextCluster(arch, **kwargs)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def with_backend(model, backend):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, ContextClusterMixer):
            module.backend = backend
    return model


COUNTS = dict(tiny=5_570_584, small=14_657_024, medium=29_290_520)
COUNTS.update(base_dim64=54_231_100, base_dim96=53_054_904)


@pytest.mark.parametrize('arch', COUNTS)
def test_parameter_counts(arch):
    model = ContextCluster(arch)
    head = 1000 * (model.arch['dims'][-1] + 1)
    assert sum(p.numel() for p in model.parameters()) + head == COUNTS[arch]


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (40, 100), (224, 35)])
@pytest.mark.parametrize('plan', [{}, dict(folds=1), dict(folds=(7, 3)), dict(proposals=5)])
def test_any_input_size(size, plan):
    model = build(out_indices=(0, 1, 2, 3), **plan)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    outs = {
        backend: with_backend(model, backend).double()(image) for backend in ('reference', 'fused')
    }
    height, width = size[0] // 4, size[1] // 4
    for i, actual in enumerate(outs['fused']):
        assert actual.shape == (2, MINI['dims'][i], height, width)
        assert actual.isfinite().all()
        height, width = -(-height // 2), -(-width // 2)
    assert_all_close(outs['fused'], outs['reference'], rtol=1e-9, atol=1e-9)


def test_layouts_and_batches():
    model = build(out_indices=(0, 3)).double()
    image = torch.randn(3, 3, 40, 48, dtype=torch.float64)
    expected = model(image)
    strided = torch.randn(3, 3, 40, 96, dtype=torch.float64)[..., ::2]
    strided.copy_(image)
    for variant in (image.to(memory_format=torch.channels_last), strided):
        assert_all_close(model(variant), expected)
    # An image does not depend on its neighbours in the batch.
    assert_all_close(model(image[1:2]), [exp[1:2] for exp in expected])
    model.train()
    empty = model(image[:0])
    assert [tuple(out.shape) for out in empty] == [(0, 8, 10, 12), (0, 32, 2, 2)]
    sum(out.sum() for out in empty).backward()


@pytest.mark.parametrize(
    ('out_indices', 'expected'),
    [(-1, (3,)), (0, (0,)), ((0, -1), (0, 3)), ([-4, -3, -2, -1], (0, 1, 2, 3))],
)
def test_out_indices(out_indices, expected):
    model = build(out_indices=out_indices)
    assert model.out_indices == expected
    assert len(model(torch.randn(1, 3, 32, 32))) == len(expected)
    norms = {name for name, m in model.named_children() if isinstance(m, GroupNorm1)}
    assert norms == {f'norm{i}' for i in expected}


def test_outputs_go_through_their_norm():
    model = ContextCluster(MINI, out_indices=(0, 1, 2, 3))  # norms start as 1 and 0
    for out in model(torch.randn(2, 3, 64, 64)):
        torch.testing.assert_close(out.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
        variance = out.var((1, 2, 3), correction=0)
        torch.testing.assert_close(variance, torch.ones(2), atol=1e-2, rtol=0)
    assert build(in_channels=1)(torch.randn(1, 1, 32, 32))[0].shape == (1, 32, 1, 1)


def test_proposals_and_folds_forms():
    assert build(proposals=3).proposals == ((3, 3),) * 4
    assert build(proposals=(2, 3)).proposals == ((2, 3),) * 4
    assert build(proposals=[5, 4, (3, 2), [1, 2]]).proposals == ((5, 5), (4, 4), (3, 2), (1, 2))
    assert build(folds=[8, 4, 2, 1]).folds == ((8, 8), (4, 4), (2, 2), (1, 1))
    assert ContextCluster('tiny2').proposals == ((4, 4), (2, 2), (7, 7), (4, 4))
    assert [b.mixer.folds for b in chain(*build(folds=[8, 4, 2, 1]).blocks)] == [
        (8, 8), (4, 4), (4, 4), (2, 2), (1, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='huge'), r"unknown arch 'huge': choose one of tiny, .*medium"),
        (dict(arch=3), 'arch must be a name or a dict'),
        (dict(arch=dict(depths=(1, 1, 1, 1))), r"missing keys \['dims'"),
        (dict(arch=dict(MINI, color='red')), r"unknown keys \['color'\]"),
        (dict(arch=dict(MINI, dims=(8, 8))), r"arch\['dims'\] must hold 4 positive"),
        (dict(arch=dict(MINI, head_dim=0)), r"arch\['head_dim'\] must be positive"),
        (dict(proposals=0), 'proposals: 0 is not a positive number'),
        (dict(folds=(8, 4, 2)), r'folds has the wrong length.*4 stages'),
        (dict(folds=(8, 4, 2, (1, 2, 3))), r'folds: \(1, 2, 3\) is not'),
        (dict(folds='8'), 'folds must be a number or a sequence'),
        (dict(out_indices=4), 'out_indices must be stage numbers from 0 to 3'),
        (dict(out_indices=()), 'out_indices must be stage numbers from 0 to 3'),
        (dict(out_indices=(3, -1)), 'must rise and not repeat'),
        (dict(denominator='mean'), "unknown denominator 'mean'"),
        (dict(frozen_stages=5), 'frozen_stages must be -1'),
        (dict(in_channels=0), 'in_channels must be a positive number'),
        (dict(drop_rate=1.0), 'drop_rate must be at least 0 and below 1'),
        (dict(drop_path_rate=-0.1), 'drop_path_rate must be at least 0 and below 1'),
        (dict(pretrained='open-mmlab://resnet50_v1c'), 'set pretrained=None in the model'),
        (dict(layer_scale_init_value=-1), 'layer_scale_init_value must not be negative'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ContextCluster(**{'arch': MINI, **kwargs})


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((1, 3, 64, 16), 'at least 32 x 32 pixels, got 64 x 16'),
        ((3, 64, 64), r'expects \(B, 3, H, W\), got \(3, 64, 64\)'),
    ],
)
def test_bad_inputs(shape, message):
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(shape))


@pytest.mark.parametrize('backend', ['reference', 'fused'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype, backend):
    model = build(out_indices=(0, 3), backend=backend).train()
    image = torch.randn(2, 3, 48, 80)
    with torch.autocast('cpu', dtype=dtype):
        outs = model(image)
    sum(out.float().square().mean() for out in outs).backward()
    exact = model(image)
    for out, exp in zip(outs, exact, strict=True):
        assert out.isfinite().all()
        # Few points change cluster, the rest carries the rounding of half precision.
        assert ((out.float() - exp).abs() > 0.25).float().mean() < 0.02
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    model = ContextCluster(
        MINI, out_indices=(0, 1, 2, 3), frozen_stages=frozen_stages, drop_rate=0.5
    ).train()
    prefixes = [f'{part}.{i}.' if part == 'stages' else f'{part}{i}.'
                for part in ('stages', 'norm') for i in range(frozen_stages)]  # fmt: skip
    prefixes += ['patch_embed.'] * (frozen_stages >= 0)
    for name, p in model.named_parameters():
        assert p.requires_grad != name.startswith(tuple(prefixes)), name
    assert model.patch_embed.training == (frozen_stages < 0)
    assert [stage.training for stage in model.stages] == [i >= frozen_stages for i in range(4)]


def test_train_and_norm_eval():
    model = ContextCluster(MINI, norm_eval=True)
    assert model.train() is model
    norms = [m for m in model.modules() if isinstance(m, GroupNorm1)]
    assert len(norms) == 2 * 5 + 1
    assert not any(norm.training for norm in norms)
    assert model.stages[0].blocks[0].training
    assert ContextCluster(MINI).train().norm3.training
    assert not model.eval().training


@pytest.mark.parametrize('drop', [0.0, 0.3])
def test_checkpointing_changes_nothing(drop):
    image = torch.randn(2, 3, 32, 48)
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = ContextCluster(
            MINI, with_cp=with_cp, drop_rate=drop, drop_path_rate=drop, layer_scale_init_value=1
        ).train()
        torch.manual_seed(1)
        model(image)[0].square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert_all_close(*grads)


def test_drop_path_rises_linearly():
    blocks = chain(*ContextCluster('small', drop_path_rate=0.22).blocks)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in blocks]
    assert rates == pytest.approx([0.02 * k for k in range(12)])


def test_layer_depth():
    model = ContextCluster(MINI, out_indices=(1, 3))
    depth = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.')
             for name, _ in model.named_parameters()}  # fmt: skip
    for name, expected in {
        'patch_embed.proj.weight': 0,
        'stages.0.blocks.0.mixer.in_proj.weight': 1,
        'stages.1.reducer.proj.weight': 2,
        'stages.1.blocks.1.layer_scale1': 3,
        'norm1.weight': 3,
        'norm3.weight': 5,
    }.items():
        assert depth[name] == (expected, 7)
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (6, 7)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_builds_under_every_default_scope(scope):
    pytest.importorskip(scope)
    registry = __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
    with DefaultScope.overwrite_default_scope(scope):
        for models in (registry, ROOT_MODELS):
            model = models.build(dict(type='coc_mm.ContextCluster', arch='tiny'))
            assert type(model) is ContextCluster
    assert type(MODELS.build(dict(type='ContextCluster', arch=MINI))) is ContextCluster


def test_init_weights():
    model = ContextCluster('tiny')
    model.init_weights()
    fc1 = model.stages[2].blocks[0].mlp.fc1
    assert fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not fc1.bias.any()
    block = model.stages[0].blocks[0]
    assert block.layer_scale1.eq(1e-5).all()
    assert (block.mixer.sim_alpha.item(), block.mixer.sim_beta.item()) == (1, 0)
    assert ContextCluster(MINI, layer_scale_init_value=0).stages[0].blocks[0].layer_scale1 is None


def test_pretrained_with_prefix(tmp_path):
    source = build(MINI)
    state_dict = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    path = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict={**state_dict, 'head.fc.weight': torch.zeros(2, 32)}), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    model = ContextCluster(MINI, init_cfg=init_cfg)
    model.init_weights()
    assert_all_close(model.state_dict().values(), source.state_dict().values(), rtol=0, atol=0)


@pytest.mark.parametrize('plan', ['even', 'uneven'])
def test_compiles_as_one_graph(plan):
    model = build(out_indices=(0, 3))
    image = torch.randn(1, 3, 64 if plan == 'even' else 72, 64)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    assert_all_close(compiled(image), model(image), rtol=1e-3, atol=1e-4)


def test_state_dict_holds_no_caches():
    model = build()
    before = set(model.state_dict())
    model(torch.randn(1, 3, 36, 52))
    assert set(model.state_dict()) == before == {name for name, _ in model.named_parameters()}
    copy.deepcopy(model)


THREE = dict(depths=(1, 2, 1), dims=(8, 16, 24), mlp_ratios=[2] * 3, heads=[2] * 3, head_dim=4)
OPTIONS = [  # arch, what is added -> strides of the maps
    (THREE, {}, (4, 8, 16)),
    (MINI, dict(head_dim=(2, 4, 6, 8)), (4, 8, 16, 32)),
    (MINI, dict(patch_size=7, patch_stride=7, reducer_size=5), (7, 14, 28, 56)),
    (MINI, dict(positions=False), (4, 8, 16, 32)),
    (MINI, dict(clustering=False), (4, 8, 16, 32)),
    (MINI, dict(folds=1), (4, 8, 16, 32)),
]


@pytest.mark.parametrize(('arch', 'more', 'strides'), OPTIONS)
def test_options_of_an_arch(arch, more, strides):
    model = ContextCluster(arch | more, out_indices=range(len(strides)))
    model.eval().double()
    draw = np.random.default_rng(0).standard_normal
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(draw(parameter.shape)) * parameter[0].numel() ** -0.5)
    image = torch.from_numpy(draw((1, 3, 112, 168)))
    outs = model(image)
    # The norm of each map and its values at every 997th place, by the reference backend.
    figures = json.loads(FIGURES.read_text())
    for x, figure in zip(outs, figures[str(more or 'three stages')], strict=True):
        x = x.detach()
        found = [float(x.norm()), *x.flatten()[::997].tolist()]
        np.testing.assert_allclose(found, figure, rtol=1e-9, atol=1e-9)
    assert [info['reduction'] for info in model.feature_info] == list(strides)
    widths = [dict(num_chs=x.shape[1], height=x.shape[2]) for x in outs]
    assert [w['num_chs'] for w in widths] == list(arch['dims'])
    if 'patch_size' not in more:
        assert [w['height'] for w in widths] == [-(-112 // s) for s in strides]
    assert_all_close(outs, with_backend(model, 'reference')(image))
    with pytest.raises(ValueError, match=f'at least {strides[-1]} x {strides[-1]} pixels'):
        model(image[..., : strides[-1] - 1])


def test_without_clustering_each_point_gets_the_mean_of_its_region():
    model = ContextCluster(MINI | dict(clustering=False, folds=(2, 1, 1, 1))).double()
    mixer = model.blocks[0][0].mixer
    assert not any(p.requires_grad for p in (mixer.sim_alpha, mixer.sim_beta))
    points = torch.randn(2, 8, 12, 8, dtype=torch.float64)
    values = mixer.project(points)[1].flatten(-2)
    mean = values.reshape(2, 2, 4, 2, 6, 8).mean((2, 4), keepdim=True)
    expected = mean.expand(2, 2, 4, 2, 6, 8).reshape(2, 8, 12, 8)
    torch.testing.assert_close(mixer.mix(points), expected, rtol=1e-9, atol=1e-12)


def test_without_positions_only_the_colors_count():
    model = ContextCluster(MINI | dict(positions=False)).eval()
    assert model.patch_embed.proj.in_channels == 3
    whole = ContextCluster(MINI).eval()
    state = model.state_dict()
    weight = state['patch_embed.proj.weight']
    state['patch_embed.proj.weight'] = torch.cat([weight, torch.zeros(8, 2, 4, 4)], 1)
    whole.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64)
    assert_all_close(model(image), whole(image))
