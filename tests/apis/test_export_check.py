"""The check of exported files: what it passes, what it sees."""

from copy import deepcopy

import numpy as np
import onnx
import pytest
import torch
from lively import enliven
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config

from coc_mm.apis.export import DeployModel, export_program, save_program
from coc_mm.apis.export_check import (
    Exported,
    batch_of,
    check,
    library_outputs,
    load_pictures,
    replaying,
)
from coc_mm.apis.start import build_model


@pytest.fixture(scope='module')
def exported(projects, tmp_path_factory):
    """A lively classifier and its file."""
    net = enliven(build_model(Config.fromfile(projects['mmpretrain'].config)))
    out = tmp_path_factory.mktemp('exported') / 'model.pt2'
    save_program(export_program(DeployModel(net, 'mmpretrain'), (64, 64)), out, ['scores'], {})
    return net, out


def test_choices_are_replayed(exported):
    """Taking PyTorch's own choices changes nothing; another choice changes the map and is seen."""
    net, out = exported
    image = batch_of(load_pictures()[:2], (64, 64))
    plain = library_outputs(net, 'mmpretrain', image)[0]
    (found,), choices = Exported(out, watched=True)(image)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)
    assert len(choices) == 4
    with replaying(net, choices) as ties:
        same = library_outputs(net, 'mmpretrain', image)[0]
    assert ties.widest < 1e-5
    torch.testing.assert_close(same, found, rtol=1e-4, atol=1e-5)
    with replaying(net, [3 - x for x in choices]) as ties:
        other = library_outputs(net, 'mmpretrain', image)[0]
    assert ties.other > ties.points / 2
    assert ties.widest > 1e-3
    assert (other - plain).abs().max() > 1e-4


def test_a_wrong_file_is_seen(exported):
    """A file of other weights fails the check."""
    net, out = exported
    other = deepcopy(net)
    other.head.fc.weight.data.neg_()
    rest = ('mmpretrain', out, ['scores'], load_pictures())
    assert not check(net, *rest, (64, 64))[1]
    _, reason = check(other, *rest, (64, 64))
    assert 'differ' in reason


def test_segmentor_onnx(projects, tmp_path):
    """A dense model in sizes that its folds do not divide."""
    config = Config.fromfile(projects['mmseg'].config)
    config.model.backbone.arch.folds = (2, 1, 1, 1)
    net, path, pictures = enliven(build_model(config)), tmp_path / 'm.onnx', load_pictures()
    save_program(export_program(DeployModel(net, 'mmseg'), (64, 96)), path, ['logits'], {})
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert not any('Scatter' in name for name in operators)
    seen = 0
    for shape in ((64, 96), (75, 53)):
        table, reason = check(net, 'mmseg', path, ['logits'], pictures, shape)
        assert not reason
        seen += table.row_count
    assert seen == 4
    (found,) = Exported(path)(batch_of(pictures[:3], (61, 47)))[0]
    assert found.shape == (3, 3, 61, 47)


def test_pictures_are_read_by_the_loader(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    pixels = np.random.default_rng(0).random((40, 50, 5), np.float32)
    tifffile.imwrite(tmp_path / 'bands.tif', pixels, photometric='minisblack')
    load = LoadImageFromFile(color_type='unchanged', imdecode_backend='tifffile')
    (picture,) = load_pictures(str(tmp_path), 5, load)
    assert picture.shape == (1, 5, 40, 50)
    assert (picture.min(), picture.max()) == (0, 255)
