"""Models ready to export beside the ones that they were made from."""

from copy import deepcopy

import pytest
import torch
from lively import enliven
from mmengine.config import Config

from coc_mm.apis import export
from coc_mm.apis.export_check import batch_of, library_outputs, load_pictures
from coc_mm.apis.start import build_model
from coc_mm.models.layers import ContextClusterBlock


@pytest.mark.parametrize('denominator', ['similarity', 'count'])
@pytest.mark.parametrize(('proposals', 'folds'), [((2, 2), (2, 2)), ((3, 2), (1, 1))])
def test_block(proposals, folds, denominator):
    """Any size, from regions of one point to regions of unequal size, gives the block's map."""
    block = ContextClusterBlock(8, 2, 4, 2, proposals, folds, denominator=denominator)
    block = enliven(block).double()
    stage = deepcopy(block)
    stage.fold()
    sizes = [(2, 2), (4, 4), (5, 7), (3, 9), (16, 8)]
    for size in sizes:
        x = torch.randn(2, *size, 8, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(stage(x), block(x))
    if denominator == 'count' or folds == (1, 1):
        return  # tracing is slow, and a whole segmentor is traced below
    free = {0: torch.export.Dim('b', min=1), 1: torch.export.Dim('h', min=4, max=99)}
    free[2] = torch.export.Dim('w', min=4, max=99)
    with torch.no_grad():
        program = torch.export.export(
            *(stage, (torch.randn(2, 6, 7, 8, dtype=torch.float64),)),
            dynamic_shapes=(free,),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    module = program.module()
    assert not any('scatter' in str(node.target) for node in program.graph.nodes)
    for size in ((4, 4), (5, 7), (16, 8)):
        x = torch.randn(3, *size, 8, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(module(x), block(x))


def test_detector(projects):
    """Backbone and neck at sizes that folds do not divide; free sizes are traced above."""
    net = enliven(build_model(Config.fromfile(projects['mmdet'].config)))
    deployable = export.DeployModel(net, 'mmdet')
    for size in ((64, 96), (61, 47)):
        image = batch_of(load_pictures()[:3], size)
        with torch.no_grad():
            found = deployable(image)
        assert len(found) == len(deployable.output_names)
        wanted = library_outputs(net, 'mmdet', image)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert [tuple(x.shape[2:]) for x in found] == [(15, 11), (8, 6), (4, 3), (2, 2)]


def test_bgr_models_get_bgr(projects):
    """The exported input is RGB also where the model itself was trained on BGR."""
    config = Config.fromfile(projects['mmpretrain'].config)
    config.model.data_preprocessor.to_rgb = False
    net = enliven(build_model(config))
    image = batch_of(load_pictures()[:1], (64, 64))
    with torch.no_grad():
        found = export.DeployModel(net, 'mmpretrain')(image)[0]
    wanted = library_outputs(net, 'mmpretrain', image)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_min_size():
    """Every stage has more rows than regions at the least size, and no less would do."""
    for folds, least in (((8, 4, 2, 1), 36), ((7, 7, 1, 1), 60), ((1, 1, 1, 1), 36)):
        pairs = [(n, n) for n in folds]
        assert export.min_size('mmseg', pairs) == least
        rows = least // 4
        for n in folds:
            assert rows > n
            rows = (rows + 1) // 2


def test_multilabel_heads_end_in_sigmoids(projects):
    config = Config.fromfile(projects['mmpretrain'].config)
    config.model.head.update(type='MultiLabelLinearClsHead', topk=None, thr=0.5)
    net = enliven(build_model(config))
    image = batch_of(load_pictures()[:2], (64, 64))
    with torch.no_grad():
        found = export.DeployModel(net, 'mmpretrain')(image)[0]
    wanted = library_outputs(net, 'mmpretrain', image)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found.sum(1), torch.ones(2))


def test_a_model_of_one_channel(projects):
    config = Config.fromfile(projects['mmpretrain'].config)
    config.model.backbone.in_channels = 1
    config.model.data_preprocessor.update(mean=[127], std=[64], to_rgb=False)
    net = enliven(build_model(config))
    image = batch_of(load_pictures(channels=1)[:2], (64, 64))
    assert image.shape == (2, 1, 64, 64)
    with torch.no_grad():
        found = export.DeployModel(net, 'mmpretrain')(image)[0]
    wanted = library_outputs(net, 'mmpretrain', image)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
