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
    for size in [(2, 2), (4, 4), (5, 7), (3, 9), (16, 8)]:
        x = torch.randn(2, *size, 8, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(stage(x), block(x))


def test_detector(projects):
    """Backbone and neck at sizes that folds do not divide."""
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


def test_min_size():
    """Every stage has more rows than regions at the least size, and no less would do."""
    for folds, least in (((8, 4, 2, 1), 36), ((7, 7, 1, 1), 60), ((1, 1, 1, 1), 36)):
        pairs = [(n, n) for n in folds]
        assert export.min_size('mmseg', pairs) == least
        rows = least // 4
        for n in folds:
            assert rows > n
            rows = (rows + 1) // 2


@pytest.mark.parametrize('kind', ['bgr', 'multilabel', 'one channel'])
def test_classifiers(projects, kind):
    """Whatever a model itself takes, the exported one takes RGB or the one channel."""
    config = Config.fromfile(projects['mmpretrain'].config)
    channels = 1 if kind == 'one channel' else 3
    if kind == 'multilabel':
        config.model.head.update(type='MultiLabelLinearClsHead', topk=None, thr=0.5)
    else:
        config.model.data_preprocessor.to_rgb = False
    if channels == 1:
        config.model.backbone.in_channels = 1
        config.model.data_preprocessor.update(mean=[127], std=[64])
    net = enliven(build_model(config))
    image = batch_of(load_pictures(channels=channels)[:2], (64, 64))
    assert image.shape == (2, channels, 64, 64)
    with torch.no_grad():
        found = export.DeployModel(net, 'mmpretrain')(image)[0]
    wanted = library_outputs(net, 'mmpretrain', image)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert torch.allclose(found.sum(1), torch.ones(2)) is (kind != 'multilabel')
