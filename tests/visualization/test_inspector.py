"""A model with its own test pipeline, looking at pictures."""

import numpy as np
import pytest
import torch
from tiny_projects import write_project

from coc_mm.visualization import ClusterInspector, cluster_maps


@pytest.fixture(scope='module', params=['mmpretrain', 'mmdet', 'mmseg'])
def project(request, tmp_path_factory):
    pytest.importorskip(request.param)
    from coc_mm.apis.config import load_config
    from coc_mm.apis.infer import load_model

    config = load_config(str(write_project(tmp_path_factory.mktemp(request.param), request.param)))
    torch.manual_seed(0)
    return request.param, load_model(config, None), config


def photo(size=(96, 130)):
    image = np.random.default_rng(0).integers(0, 60, (*size, 3), dtype=np.uint8)
    image[20:60, 30:80] = (250, 40, 40)
    return image


def test_every_library_is_looked_into(project):
    scope, model, config = project
    inspector = ClusterInspector(model, config)
    image = photo()
    found = inspector(image, block=-1)
    assert list(found.maps) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert inspector.depths == [1, 1, 1, 1]
    assert inspector.heads == [2, 2, 2, 2]
    np.testing.assert_array_equal(found.picture, image)
    assert found.box == (0, 0, 96, 130)
    # mmdet keeps the proportions (47 x 64) and pads to 64 x 64.
    bottom = {'mmpretrain': 1, 'mmdet': 64 / 47, 'mmseg': 1}[scope]
    assert found.extent == pytest.approx((0, 0, bottom, 1))
    assert found.findings
    names = {'mmpretrain': 2, 'mmdet': ('disc', 'box'), 'mmseg': ('ground', 'disc', 'box')}[scope]
    if scope == 'mmpretrain':  # a folder of classes: without a checkpoint, numbers
        assert sorted(name for name, _ in found.findings) == ['0', '1']
        assert sum(p for _, p in found.findings) == pytest.approx(1)
        assert inspector.caption(found) == (
            f'{found.findings[0][0]} ({100 * found.findings[0][1]:.1f} %)'
        )
    else:
        assert {name for name, _ in found.findings} <= set(names)
    values = [value for _, value in found.findings]
    assert values == sorted(values, reverse=True)


def test_maps_and_prediction_are_the_models_own(project):
    scope, model, config = project
    inspector, image = ClusterInspector(model, config), photo()
    found = inspector(image)
    data = inspector._prepare(image)
    batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
    with torch.no_grad():
        (sample,) = model.test_step(batch)
    inputs = model.data_preprocessor(batch)['inputs']
    for key, maps in cluster_maps(model, inputs).items():
        assert torch.equal(maps.assignment, found.maps[key].assignment)
    prediction = {
        'mmpretrain': lambda sample: sample.pred_score,
        'mmdet': lambda sample: sample.pred_instances.scores,
        'mmseg': lambda sample: sample.pred_sem_seg.data,
    }[scope]
    assert torch.equal(prediction(sample), prediction(found.sample))


def test_sliding_windows_show_the_whole_image(project, monkeypatch):
    scope, model, config = project
    if scope != 'mmseg':
        pytest.skip('only mmseg slides')
    whole = ClusterInspector(model, config)(photo(), 0, 0)
    slide = model.test_cfg.copy()
    slide.update(mode='slide', crop_size=(48, 48), stride=(32, 32))
    monkeypatch.setattr(model, 'test_cfg', slide)
    slid = ClusterInspector(model, config)(photo(), 0, 0)
    assert torch.equal(slid.maps[0, 0].assignment, whole.maps[0, 0].assignment)


def test_large_pictures_shrink(project):
    _, model, config = project
    inspector = ClusterInspector(model, config, longest=100)
    found = inspector(photo((60, 250)), 0, 0)
    assert found.picture.shape == (24, 100, 3)
    assert found.box == (0, 0, 60, 250)
    with pytest.raises(ValueError, match='stages 0 to 3'):
        inspector(photo(), 4)


@pytest.mark.parametrize('size', [64, 160])
def test_size_of_the_input_is_chosen(project, size):
    scope, model, config = project
    found = ClusterInspector(model, config, size=size)(photo((96, 192)), block=-1)
    assert len(found.maps) == 4
    height = size // 2
    padded = -(-height // 32) * 32 if scope == 'mmdet' else height
    for maps in found.maps.values():
        assert maps.input_size == (padded, size)
    assert found.maps[0, 0].size == (padded // 4, size // 4)
    assert found.box == (0, 0, 96, 192)
    assert found.extent == pytest.approx((0, 0, padded / height, 1))
    assert found.picture.shape == (96, 192, 3)


def test_the_whole_image_is_squashed(project):
    _, model, config = project
    found = ClusterInspector(model, config, size=(96, 96))(photo((96, 192)), 0, 0)
    assert found.maps[0, 0].input_size == (96, 96)
    assert (found.box, found.extent) == ((0, 0, 96, 192), pytest.approx((0, 0, 1, 1)))


def test_red_arrives_as_red(project):
    """The pipeline gets the channel order that its own loader would give."""
    _, model, config = project
    inspector = ClusterInspector(model, config)
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = 255
    inputs = inspector._prepare(image)['inputs']
    assert inputs[2].min() == 255  # BGR, as mmcv loads
    assert inputs[:2].max() == 0
