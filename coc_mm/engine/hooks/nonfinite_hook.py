"""Watch the numbers of a training: losses, gradients, and the gradient scale of mixed precision."""

from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from coc_mm.engine.hooks.nonfinite_report import describe, save_batch
from coc_mm.registry import HOOKS

__all__ = ['NonFiniteError', 'NonFiniteHook']

# A collapsing scale halves at every step; one line for each four halvings says enough.
_LINE_EVERY = 16


class NonFiniteError(ValueError):
    """A loss or a gradient is NaN or infinite."""


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop at a NaN or infinite loss or gradient, or skip the update it would make.

    The tools put this hook into every training, as ``default_hooks.numbers``. It names
    iteration, epoch, the losses and the files of the batch, and saves the batch under
    ``nonfinite`` in the work dir. Where several processes train, what one of them meets stops
    or skips all of them at the same iteration.

    What it costs: a norm of the gradients and, with several processes, the sum of one number per
    process. On an accelerator the verdict is read after the logger has waited for the device
    anyway, so one update is made before a run stops; ``'skip'`` has to know before the
    optimizer's step, and waits for the device once more per iteration.

    With ``'skip'`` nothing of such a batch reaches weights, the state of the optimizer, averaged
    weights (EMA) or buffers such as the statistics of batch norms. While gradients are
    accumulated, all batches of the update are left out. Loss scaling (AMP in float16) skips
    infinite gradients by itself, as its way to find a scale: there losses alone are watched, and
    a scale that falls below ``min_scale`` is warned of.

    Args:
        action (str): ``'stop'`` or ``'skip'``. Defaults to ``'stop'``.
        max_in_a_row (int): Updates skipped in a row that end a run. Defaults to 10.
        save_inputs (int): Batches saved at most by each process. Defaults to 10.
        min_scale (float): Gradient scale below which a warning is written. Defaults to 1.

    Raises:
        ValueError: An argument is out of range.
        NonFiniteError: From the training, where it stops.
    """

    # After RuntimeInfoHook, which waits for the device; before EMAHook, which reads weights.
    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        action: str = 'stop',
        max_in_a_row: int = 10,
        save_inputs: int = 10,
        min_scale: float = 1.0,
    ) -> None:
        if action not in ('stop', 'skip'):
            raise ValueError(f"action of NonFiniteHook is 'stop' or 'skip', not {action!r}")
        if max_in_a_row < 1:
            raise ValueError(f'max_in_a_row must be at least 1, got {max_in_a_row}')
        self.action = action
        self.max_in_a_row = max_in_a_row
        self.save_inputs = save_inputs
        self.min_scale = min_scale
        self.skipped = self._in_a_row = self._saved = 0
        self._dropped = False  # this iteration's step was left out
        self._poisoned = False  # a batch of the update that is being accumulated was bad
        self._bad_loss: Any = None
        self._verdicts: list[torch.Tensor] = []
        self._buffers: list[torch.Tensor] = []
        self._kept: list[torch.Tensor] = []
        self._warned: dict[str, float] = {}

    # Around the optimizer's step

    def before_train(self, runner: Runner) -> None:
        """Watch the updates of the runner's optimizer wrapper.

        Args:
            runner (Runner): The runner of the training.
        """
        for wrapper in _wrappers(runner.optim_wrapper).values():
            # On the instance: mmengine has no hook between the backward pass and the step.
            wrapper.update_params = partial(self._update_params, wrapper.update_params)
            wrapper.step = partial(self._step, wrapper, wrapper.step)
        if self.action == 'skip':
            self._buffers = list(runner.model.buffers())

    def after_train(self, runner: Runner) -> None:
        """Let the optimizer wrapper be, and say how many updates were left out.

        Args:
            runner (Runner): The runner of the training.
        """
        for wrapper in _wrappers(runner.optim_wrapper).values():
            for name in ('update_params', 'step'):
                vars(wrapper).pop(name, None)
        if self.skipped:
            runner.logger.warning(
                f'{self.skipped} updates were skipped in this run because of numbers that are '
                'not finite.'
            )

    def _update_params(self, update_params, loss, *args, **kwargs) -> None:
        seen = len(self._verdicts)
        self._bad_loss = ~loss.detach().isfinite().all()
        update_params(loss, *args, **kwargs)
        if len(self._verdicts) == seen:  # gradients are accumulated, no step was due
            self._verdicts.append(_of_all_processes(self._bad_loss, self._bad_loss))
        self._bad_loss = None

    def _step(self, wrapper, step, **kwargs) -> None:
        loss: Any = self._bad_loss
        gradients: Any = _bad_gradients(wrapper)
        if loss is None and gradients is None:  # nothing to judge by
            return step(**kwargs)
        loss = torch.zeros_like(gradients) if loss is None else loss
        gradients = loss if gradients is None else gradients.to(loss.device)
        verdict = _of_all_processes(loss, gradients)
        self._verdicts.append(verdict)
        if self.action == 'stop' and verdict.device.type != 'cpu':
            return step(**kwargs)  # read in after_train_iter, when the device is done
        if self._poisoned or bool(verdict.any()):
            self._poisoned, self._dropped = False, True
            self.skipped += 1
            self._in_a_row += 1
            return None
        self._in_a_row = 0
        return step(**kwargs)

    # Around the iteration

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Keep the buffers as they are, where an update may be skipped.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Number of the batch.
            data_batch (dict, optional): The batch.
        """
        self._verdicts, self._dropped = [], False
        if not self._buffers:
            return
        if not self._kept:
            self._kept = [buffer.detach().clone() for buffer in self._buffers]
        else:
            torch._foreach_copy_(self._kept, self._buffers)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Report what is not finite; stop where that was asked for.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Number of the batch.
            data_batch (dict, optional): The batch, as the data loader gave it.
            outputs (dict, optional): The losses by name.

        Raises:
            NonFiniteError: The run is to stop.
        """
        self._watch_scale(runner)
        if not self._verdicts:
            return
        verdicts, self._verdicts = self._verdicts, []
        bad = torch.stack(verdicts).amax(0).tolist()
        if not any(bad):
            return
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(kept)
        text = self._report(runner, bad[get_rank()] == max(bad), data_batch, outputs)
        if self.action == 'skip':
            self._poisoned = not self._dropped  # no step was due: leave out the one that will be
            number = self.skipped + self._poisoned
            runner.logger.warning(f'{text}\nThis update is skipped, number {number} of the run.')
            if self._in_a_row < self.max_in_a_row:
                return
            text += f'\n{self._in_a_row} updates in a row were skipped.'
        if get_rank() != 0:
            raise NonFiniteError('stopped together with process 0, whose message says why.')
        raise NonFiniteError(f'{text}\n{self._way_out()}')

    def _report(self, runner, mine: bool, data_batch, outputs) -> str:
        """Describe and save the batches of the processes whose numbers are to blame."""
        text = None
        if mine:
            text, named = describe(data_batch, outputs or {})
            if self._saved < self.save_inputs:
                self._saved += 1
                text += f'; {save_batch(runner, data_batch, named, text)}'
        texts = [text] if get_world_size() == 1 else all_gather_object(text)
        where = f'iteration {runner.iter + 1} (epoch {runner.epoch + 1})'
        if len(texts) == 1:
            return f'{where}: {text}'
        found = [f'process {rank}: {text}' for rank, text in enumerate(texts) if text is not None]
        return f'{where}, ' + ' | '.join(found)

    def _way_out(self) -> str:
        out = 'Resume from the last checkpoint (--resume) with a lower learning rate or '
        out += 'optim_wrapper.clip_grad'
        if self.action == 'skip':
            return f'{out}; look at the images and annotations of the batch.'
        return f'{out}, or leave such batches out: default_hooks.numbers.action=skip'

    # The gradient scale

    def _watch_scale(self, runner: Runner) -> None:
        """Warn of a gradient scale below the least, and again each time it falls much further."""
        for name, wrapper in _wrappers(runner.optim_wrapper).items():
            scaler = getattr(wrapper, 'loss_scaler', None)
            if scaler is None or not scaler.is_enabled():
                continue
            scale = scaler.get_scale()
            if scale >= self.min_scale:
                self._warned.pop(name, None)
            elif scale <= self._warned.get(name, float('inf')) / _LINE_EVERY:
                self._warned[name] = scale
                runner.logger.warning(
                    f'iteration {runner.iter + 1}: the gradient scale of mixed precision fell to '
                    f'{scale:g}, below {self.min_scale:g}: gradients are infinite or NaN again '
                    'and again, and each time the update is left out. Train in bfloat16 '
                    '(optim_wrapper.dtype=bfloat16), without --amp, or with a lower learning rate.'
                )


def _wrappers(optim_wrapper) -> dict:
    if isinstance(optim_wrapper, OptimWrapperDict):
        return dict(optim_wrapper.items())
    return {'': optim_wrapper}


def _bad_gradients(wrapper) -> torch.Tensor | None:
    """Tell whether a gradient is not finite; None under loss scaling, which sees to that itself."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    if scaler is not None and scaler.is_enabled():
        return None
    groups = wrapper.optimizer.param_groups
    gradients = [p.grad for group in groups for p in group['params'] if p.grad is not None]
    gradients = [g.detach() for g in gradients if g.layout == torch.strided]
    if not gradients:
        return None
    # Norms of squares are several times faster on CPUs than a look at each element.
    norms = torch._foreach_norm(gradients)
    device = norms[0].device
    return ~torch.stack([norm.to(device, torch.float32) for norm in norms]).isfinite().all()


def _of_all_processes(loss: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Share what is bad; return (processes,) int32: 2 for a loss, 1 for gradients alone, else 0.

    One process's loss makes the gradients of all bad.
    """
    flags = torch.zeros(get_world_size(), dtype=torch.int32, device=loss.device)
    flags[get_rank()] = torch.where(loss, 2, gradients.int())
    if len(flags) > 1:
        all_reduce(flags)
    return flags
