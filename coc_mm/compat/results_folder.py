"""Where several processes gather their results, and who writes the scores.

mmengine's processes write their parts of an evaluation into ``.dist_test`` in the current folder,
which stays there, and all write the scores into one file.
"""

from pathlib import Path

from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner


class _ResultsFolderHook(Hook):
    """Sets ``collect_dir`` of metrics that have none."""

    @staticmethod
    def _name(runner, loop) -> None:
        for metric in loop.evaluator.metrics:
            if getattr(metric, 'collect_dir', None) is None:
                metric.collect_dir = str(Path(runner.log_dir) / 'results')

    def before_val(self, runner) -> None:
        self._name(runner, runner.val_loop)

    def before_test(self, runner) -> None:
        self._name(runner, runner.test_loop)


def gather_in_log_dir(runner: Runner) -> None:
    """Let a built runner of several processes gather results in the folder of its log.

    mmengine removes that folder once they are read. Process 0 alone writes the scores of a test.
    """
    if get_world_size() > 1:
        runner.register_hook(_ResultsFolderHook())
        for hook in runner.hooks:
            if isinstance(hook, LoggerHook):
                hook.after_test_epoch = master_only(hook.after_test_epoch)
