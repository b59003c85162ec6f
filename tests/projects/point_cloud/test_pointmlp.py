"""PointMLP with context clusters against the official figures, and its options."""

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement

from coc_mm.checkpoints import convert_official
from coc_mm.checkpoints.load import load_checkpoint_safely
from coc_mm.registry import MODELS
from projects.point_cloud.point_cloud.models import PointMLPCoC
from projects.point_cloud.point_cloud.models.layers import GroupCluster

SMALL = dict(
    num_classes=5,
    points=32,
    embed_dim=8,
    dim_expansion=(2, 2),
    pre_blocks=(1, 2),
    pos_blocks=(1, 0),
    k_neighbors=(6, 4),
    reducers=(2, 2),
)


def samples(labels):
    return [BaseDataElement(gt_label=torch.tensor(label)) for label in labels]


@pytest.fixture(scope='module')
def official():
    expected = golden.load('pointmlp_coc_1024')
    shape = tuple(expected['input_shape'])
    points = np.random.default_rng(int(expected['seed'])).uniform(-1, 1, shape)
    weights = golden.official_state_dict('pointmlp_coc', int(expected['salt']))
    return torch.from_numpy(points), weights, expected['logits']


def test_official_logits(official):
    points, weights, logits = official
    model = PointMLPCoC().double().eval()
    model.load_state_dict(convert_official(weights, 'point_cloud'))
    with torch.inference_mode():
        ours = model(points, mode='tensor').numpy()
    np.testing.assert_allclose(ours, logits, rtol=1e-9, atol=1e-9)


def test_converted_by_the_tool(official, tool, tmp_path, capsys):
    """A checkpoint of the official script, here with 40 classes as for ModelNet40."""
    weights = dict(official[1])
    weights['classifier.8.weight'] = torch.rand(40, 256)
    weights['classifier.8.bias'] = torch.rand(40)
    source, target = tmp_path / 'best_checkpoint.pth', tmp_path / 'ours.pth'
    torch.save(dict(net={f'module.{k}': v for k, v in weights.items()}, epoch=9), source)
    main = tool('model_converters/official_to_coc_mm')
    assert main([str(source), str(target), '--task', 'point_cloud']) == 0
    assert '310 weights fit, 40 classes' in capsys.readouterr().out
    converted = load_checkpoint_safely(target)
    assert converted['meta']['coc_mm']['task'] == 'point_cloud'
    PointMLPCoC(num_classes=40).load_state_dict(converted['state_dict'])
    del weights['embedding.net.0.weight']
    torch.save(dict(net=weights), source)
    assert main([str(source), str(target), '--force']) == 2
    assert 'missing (embedding.net.0.weight)' in capsys.readouterr().err


def test_a_group_is_one_cluster():
    """The equations of the paper with one center, written out."""
    layer = GroupCluster(12, heads=2, head_dim=3).double()
    torch.nn.init.constant_(layer.sim_alpha, -1.3)
    torch.nn.init.constant_(layer.sim_beta, 0.4)
    x = torch.randn(5, 7, 12, dtype=torch.float64)
    out = []
    for features, values in zip(layer.fc1(x).split(3, -1), layer.fc_v(x).split(3, -1), strict=True):
        center = features.mean(1, keepdim=True)
        s = torch.sigmoid(0.4 - 1.3 * F.cosine_similarity(features, center, dim=-1, eps=1e-12))
        s = s.unsqueeze(-1)
        g = ((s * values).sum(1) + values.mean(1)) / (s.sum(1) + 1)
        out.append(s * g.unsqueeze(1))
    expected = x + layer.fc2(torch.cat(out, -1))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    layer.backend = 'reference'
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    assert layer.similarity(x).shape == (5, 7)


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(bias=True, use_xyz=True, normalize='center'),
        dict(groups=2, res_expansion=0.5, normalize=None),
        dict(heads=2, head_dim=4, activation='leakyrelu0.2', fps_start='random'),
    ],
    ids=['default', 'center', 'grouped', 'heads'],
)
def test_options_train(options):
    model = MODELS.build(dict(type='PointMLPCoC', **SMALL, **options)).train()
    points = torch.rand(3, 3, 40)
    losses = model(points, samples([0, 4, 2]), mode='loss')
    losses['loss'].backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None]
    # Without coordinates nothing else is left out: every parameter took part.
    assert lacking == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_order_of_points_does_not_matter():
    model = PointMLPCoC(**SMALL, fps_start='random').eval().double()
    points = torch.rand(2, 3, 32, dtype=torch.float64)
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(31)])  # the first point starts
    with torch.inference_mode():
        first, again = model(points), model(points)
        torch.testing.assert_close(first, again, rtol=0, atol=0)
        torch.testing.assert_close(first, model(points[..., order]), rtol=1e-10, atol=1e-10)
    assert model.train().local_grouper_list[0].start == 'random'


def test_loss_is_the_recipes():
    model = PointMLPCoC(**SMALL, dropout=0).train()
    points, labels = torch.rand(4, 3, 32), torch.tensor([0, 1, 4, 2])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    logits = model(points)
    model.load_state_dict(state)  # running statistics do not enter, but keep the two alike
    loss = model(points, samples(labels.tolist()), 'loss')['loss']
    target = torch.full((4, 5), 0.2 / 4).scatter(1, labels[:, None], 0.8)
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())


def test_predict():
    model = PointMLPCoC(**SMALL).eval()
    points = torch.rand(2, 3, 33)
    with torch.inference_mode():
        logits = model(points)
        found = model(points, mode='predict')
        kept = model(points, samples([1, 2]), 'predict')
    assert [int(s.pred_label) for s in found] == logits.argmax(1).tolist()
    torch.testing.assert_close(torch.stack([s.pred_score for s in kept]), logits.softmax(1))
    assert [int(s.gt_label) for s in kept] == [1, 2]


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        (dict(activation='tanh'), 'unknown activation'),
        (dict(k_neighbors=(6, 17)), 'stage 2 sees 16 points'),
        (dict(pos_blocks=(1,)), 'every stage needs one entry'),
    ],
)
def test_options_that_do_not_go_together(options, text):
    with pytest.raises(ValueError, match=text):
        PointMLPCoC(**{**SMALL, **options})
