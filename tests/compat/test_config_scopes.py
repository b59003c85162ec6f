"""Inheriting the configs of installed packages."""

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

OURS = 'coc_mm::classification/coc-small_8xb128_in1k.py'


@pytest.mark.parametrize(
    ('base', 'model'),
    [
        (OURS, 'ImageClassifier'),
        ('mmseg::_base_/models/fpn_r50.py', 'EncoderDecoder'),
        ('mmdet::_base_/models/retinanet_r50_fpn.py', 'RetinaNet'),
        ('mmpretrain::_base_/models/resnet18.py', 'ImageClassifier'),
    ],
)
def test_a_base_of_an_installed_package(base, model, tmp_path):
    path = tmp_path / 'own.py'
    path.write_text(f'_base_ = [{base!r}]\nwork_dir = "here"\n')
    config = Config.fromfile(path)
    assert config.model.type == model
    assert config.work_dir == 'here'
    if base == OURS:  # as if it stood there
        assert config.to_dict() == {**get_config(OURS).to_dict(), 'work_dir': 'here'}


def test_get_config():
    assert get_config(OURS).model.backbone.type == 'coc_mm.ContextCluster'
