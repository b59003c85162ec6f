"""Make up for a validation that a run was killed before or in."""

from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from coc_mm.engine.fault_tolerance.seeding import is_inside_epoch
from coc_mm.registry import HOOKS
from coc_mm.utils.atomic_io import atomic_write


@HOOKS.register_module(name=['ValidateOnResumeHook', 'OwedValidationHook'])
class ValidateOnResumeHook(Hook):
    """Validate the checkpoint that a run is resumed from, if that was due and not done.

    mmengine writes checkpoints before the validation of the same moment, which it leaves out when
    a run goes on from them. The iteration of the last finished validation stands in the file
    ``last_validation`` of the work dir. Part of every run by ``tools/train.py``.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Validate if that is due."""
        record = Path(runner.work_dir, 'last_validation')
        done = [record.is_file() and record.read_text().strip() == str(runner.iter)]
        broadcast_object_list(done)
        if not done[0]:  # of another run, or of a later moment that comes again
            record.unlink(missing_ok=True)
        if runner.iter and not done[0] and _is_due(runner):
            runner.logger.info('The checkpoint has not been validated; that comes first.')
            runner.val_loop.run()

    def after_val(self, runner: Runner) -> None:
        """Record that the validation is through, with all that other hooks save after it."""
        if is_main_process() and runner._train_loop is not None:
            with atomic_write(Path(runner.work_dir, 'last_validation')) as file:
                file.write_bytes(f'{runner.iter}\n'.encode())


def _is_due(runner) -> bool:
    """Whether the training loop validates at this moment."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    loop._decide_current_val_interval()
    now, last = loop.iter, loop.max_iters
    if isinstance(loop, EpochBasedTrainLoop):
        if is_inside_epoch(runner):
            return False
        now, last = loop.epoch, loop.max_epochs
    return now >= loop.val_begin and (now % loop.val_interval == 0 or now == last)
