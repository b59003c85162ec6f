"""Predict on one validation image before a training starts."""

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from mmengine.runner.amp import autocast

from coc_mm.registry import HOOKS
from coc_mm.utils.undisturbed import undisturbed


@HOOKS.register_module()
class TrialHook(Hook):
    """Let what cannot be validated fail at the start, not after an epoch.

    Neither the model, the random generators nor the results of the evaluator change. Part of
    every run by ``tools/train.py``.
    """

    def before_train(self, runner: Runner) -> None:
        """Predict on the first validation image, and hand that to the metrics."""
        loop = runner.val_loop
        if not isinstance(loop, BaseLoop) or not hasattr(loop, 'evaluator'):
            return
        loader = loop.dataloader
        with undisturbed(runner.model), autocast(enabled=getattr(loop, 'fp16', False)):
            batch = loader.collate_fn([loader.dataset[0]])
            outputs = runner.model.val_step(batch)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        for metric in loop.evaluator.metrics:
            metric.results.clear()
