"""Let the schedule of a resumed run be that of its config."""

import warnings
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from coc_mm.errors import print_rank0
from coc_mm.registry import HOOKS

# What a scheduler's state says of the moment; the rest is its setting.
_MOMENT = ('last_step', '_global_step', '_last_value', 'verbose')


@HOOKS.register_module()
class ScheduleOnResumeHook(Hook):
    """Where a run is resumed with other schedulers, as with more epochs, take those.

    mmengine restores the schedulers of the checkpoint, so a rate that had come to its end would
    stay there. Here those of the config are stepped to the moment of the checkpoint. Part of
    every run by ``tools/train.py``.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Write the config's schedule into a checkpoint that is about to be restored."""
        new: Any = runner.param_schedulers
        old, optimizer = checkpoint.get('param_schedulers'), checkpoint.get('optimizer') or {}
        if not runner._resume or not isinstance(new, list) or 'param_groups' not in optimizer:
            return
        if not old or any(hasattr(x, 'monitor') for x in new) or _same(new, old):
            return
        meta = checkpoint['meta']
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that no optimizer has stepped
            _step_to(new, meta['iter'], meta['epoch'])
        names = {scheduler.param_name for scheduler in new}
        groups = [*optimizer['param_groups'], optimizer.get('base_param_settings')]
        groups = [group for group in groups if group is not None]
        before = groups[0]['lr']
        for group, fresh in zip(groups, runner.optim_wrapper.param_groups, strict=False):
            for name in names:
                group[name] = fresh[name]
                group[f'initial_{name}'] = fresh.get(f'initial_{name}', fresh[name])
        checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in new]
        print_rank0(
            'resume: the config asks for another schedule than the checkpoint was trained with, '
            f'and it is followed: lr {before:.3g} -> {groups[0]["lr"]:.3g}.'
        )


def _same(schedulers: list, states: list[dict]) -> bool:
    if len(schedulers) != len(states):
        return False
    fresh = [scheduler.state_dict() for scheduler in schedulers]
    return all(
        {k: v for k, v in a.items() if k not in _MOMENT}
        == {k: v for k, v in b.items() if k not in _MOMENT}
        for a, b in zip(fresh, states, strict=True)
    )


def _step_to(schedulers: list, iters: int, epochs: int) -> None:
    """Step new schedulers as a training of so many iterations would have."""
    length = max(iters // max(epochs, 1), 1)
    for i in range(1, iters + 1):
        due = [x for x in schedulers if not x.by_epoch]
        if i % length == 0 and i // length <= epochs:
            due += [x for x in schedulers if x.by_epoch]
        for scheduler in due:
            if scheduler._global_step < scheduler.end:  # later steps change nothing
                scheduler.step()
            else:
                scheduler._global_step += 1
