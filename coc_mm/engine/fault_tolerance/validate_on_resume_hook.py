"""Validations that a run was killed before or in, made up for when it goes on."""

import os
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from coc_mm.registry import HOOKS
from coc_mm.utils.atomic_io import atomic_write

__all__ = ['ValidateOnResumeHook']


@HOOKS.register_module(name=['ValidateOnResumeHook', 'OwedValidationHook'])
class ValidateOnResumeHook(Hook):
    """Validates first where a resumed run owes it.

    Checkpoints are written before the validation of the same epoch or iteration, so mmengine
    leaves it out when a run goes on from them: a best checkpoint can be missed. Which validation
    was finished last stands in the file ``last_validation`` of the work dir. Put into every run
    by ``tools/train.py``.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Validate if the checkpoint resumed from has not been.

        Args:
            runner (Runner): Of the training.
        """
        iteration = runner.train_loop.iter
        done = [self._last(runner) == iteration]
        broadcast_object_list(done)
        if not done[0]:  # of another run, or of a later moment that comes again
            self._record(runner).unlink(missing_ok=True)
        if iteration and not done[0] and _is_due(runner):
            runner.logger.info('The checkpoint has not been validated; that comes first.')
            runner.val_loop.run()

    def after_val(self, runner: Runner) -> None:
        """Note that the validation is through, with all that other hooks save after it.

        Args:
            runner (Runner): Of the training.
        """
        if is_main_process() and runner._train_loop is not None:
            with atomic_write(self._record(runner)) as file:
                file.write_bytes(f'{runner.iter}\n'.encode())

    @staticmethod
    def _record(runner) -> Path:
        return Path(os.path.join(runner.work_dir, 'last_validation'))

    def _last(self, runner) -> int | None:
        try:
            return int(self._record(runner).read_text())
        except (OSError, ValueError):
            return None


def _is_due(runner) -> bool:
    """Whether the training loop validates at this moment."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    loop._decide_current_val_interval()
    now, last = loop.iter, loop.max_iters
    if isinstance(loop, EpochBasedTrainLoop):
        if now != loop.epoch * len(loop.dataloader):  # inside an epoch
            return False
        now, last = loop.epoch, loop.max_epochs
    return now >= loop.val_begin and (now % loop.val_interval == 0 or now == last)
