"""A resumed run follows the schedule of its config."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper, PolyLR
from torch import nn

from coc_mm.engine import ScheduleOnResumeHook

LENGTH = 4  # iterations of an epoch


def make(epochs, lr=0.1, by_iteration=False):
    weights = nn.Linear(2, 2)
    groups = [dict(params=[weights.weight]), dict(params=[weights.bias], lr=lr / 10)]
    wrapper = OptimWrapper(torch.optim.AdamW(groups, lr=lr))
    main = (
        PolyLR(wrapper, by_epoch=False, end=epochs * LENGTH)
        if by_iteration
        else CosineAnnealingLR(wrapper, T_max=epochs, begin=1, end=epochs)
    )
    schedulers = [LinearLR(wrapper, start_factor=0.1, by_epoch=False, end=LENGTH), main]
    return SimpleNamespace(optim_wrapper=wrapper, param_schedulers=schedulers, _resume=True)


def train(runner, epochs):
    for _ in range(epochs):
        for _ in range(LENGTH):
            runner.optim_wrapper.optimizer.step()
            for scheduler in runner.param_schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in runner.param_schedulers:
            if scheduler.by_epoch:
                scheduler.step()
    return [group['lr'] for group in runner.optim_wrapper.param_groups]


def save(runner, epochs):
    return dict(
        meta=dict(epoch=epochs, iter=epochs * LENGTH),
        optimizer=deepcopy(runner.optim_wrapper.state_dict()),
        param_schedulers=deepcopy([x.state_dict() for x in runner.param_schedulers]),
    )


def resume(runner, checkpoint):
    """As mmengine does, which builds the schedulers once more."""
    fresh = make(*runner.made)
    fresh.optim_wrapper.load_state_dict(checkpoint['optimizer'])
    for scheduler, state in zip(
        fresh.param_schedulers, checkpoint['param_schedulers'], strict=True
    ):
        scheduler.load_state_dict(state)
    return fresh


@pytest.mark.parametrize('made', [(10,), (10, 0.3), (10, 0.1, True)])
def test_another_schedule_is_followed(made, capsys):
    short = make(5, 0.1, *made[2:])
    train(short, 4)
    checkpoint = save(short, 4)
    runner = make(*made)
    runner.made = made
    ScheduleOnResumeHook().after_load_checkpoint(runner, checkpoint)
    assert 'another schedule' in capsys.readouterr().out
    fresh, whole = resume(runner, checkpoint), make(*made)
    train(whole, 4)
    for _ in range(6):
        assert train(fresh, 1) == pytest.approx(train(whole, 1), rel=1e-9)


def test_the_same_schedule_is_left_alone(capsys):
    runner = make(5)
    train(runner, 3)
    checkpoint = save(runner, 3)
    before = deepcopy(checkpoint)
    ScheduleOnResumeHook().after_load_checkpoint(make(5), checkpoint)
    assert str(checkpoint) == str(before)
    assert not capsys.readouterr().out
    starts = make(9)
    starts._resume = False  # load_from
    ScheduleOnResumeHook().after_load_checkpoint(starts, checkpoint)
    assert str(checkpoint) == str(before)
