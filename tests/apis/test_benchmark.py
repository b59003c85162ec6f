import pytest
import torch
from mmengine.config import Config

from coc_mm.apis.benchmark import measure
from coc_mm.apis.infer import load_model


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
@pytest.mark.parametrize('training', [False, True])
def test_figures(projects, scope, training):
    model = load_model(Config.fromfile(projects[scope].config), None)
    image = torch.randn(2, 3, 64, 96)
    figures = measure(model, scope, image, training=training, amp=training, rounds=5)
    p50, p90, p99 = figures['latency_ms'].values()
    assert 0 < p50 <= p90 <= p99
    assert figures['images_per_second'] == pytest.approx(2000 / p50, rel=0.01)
    assert figures['first_call_s'] > 0
    assert model.training is training
    assert all(p.grad is None for p in model.parameters())
