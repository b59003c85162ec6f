"""Warm-up as a share of a run."""

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS


@pytest.mark.parametrize(
    ('epochs', 'length', 'share', 'steps'), [(50, 16, 0.05, 40), (3, 1, 0.05, 2), (12, 25, 0.1, 30)]
)
def test_rises_over_the_share_of_the_run(epochs, length, share, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = PARAM_SCHEDULERS.build(
        dict(type='coc_mm.WarmupLR', start_factor=0.001, share=share, convert_to_iter_based=True),
        default_args=dict(optimizer=optimizer, end=epochs, epoch_length=length),
    )
    rates = []
    for _ in range(steps + 2):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0.001
    assert sum(rate < 0.9999 for rate in rates) == steps - 1
    assert rates[-1] == pytest.approx(1)


def test_a_share_that_is_none_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    setting = dict(type='coc_mm.WarmupLR', share=0, convert_to_iter_based=True, end=3)
    with pytest.raises(ValueError, match='share of the warm-up must be above 0'):
        PARAM_SCHEDULERS.build(setting, default_args=dict(optimizer=optimizer, epoch_length=9))
