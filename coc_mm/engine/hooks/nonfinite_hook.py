"""Stop at, or skip, losses and gradients that are not finite."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from coc_mm.checkpoints.save import save_checkpoint
from coc_mm.errors import CheckpointError
from coc_mm.registry import HOOKS

_WARN_EVERY = 16  # a collapsing gradient scale halves at every step: a line for four of them
_MAX_NAMED = 8  # files in a message
_MAX_DRAWN = 16  # images on a sheet


class NonFiniteError(ValueError):
    """A loss or a gradient is NaN or infinite."""


@HOOKS.register_module(name=['NonFiniteHook', 'NumbersWatchHook'])
class NonFiniteHook(Hook):
    """Stop at a NaN or infinite loss or gradient, or skip the update it would make.

    Part of every training by the tools, as ``default_hooks.nonfinite``. The message names
    iteration, epoch, losses and the files of the batch, which is saved under ``nonfinite`` in the
    work dir. All processes stop or skip at the same iteration.

    With ``'skip'`` nothing of such a batch reaches weights, optimizer, averaged weights (EMA) or
    buffers (batch norm); all batches of an accumulated update are left out. On an accelerator
    ``'stop'`` makes one more update, and ``'skip'`` waits for the device once per iteration. Loss
    scaling (AMP in float16) skips infinite gradients by itself: there only losses are checked.

    Args:
        action (str): ``'stop'`` or ``'skip'``.
        max_in_a_row (int): Consecutive skipped updates that end a run.
        save_inputs (int): Batches saved at most by each process.
        min_scale (float): Gradient scale below which a warning is written.
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

    def before_train(self, runner: Runner) -> None:
        """Wrap the step of the runner's optimizers."""
        for wrapper in _wrappers(runner.optim_wrapper).values():
            # On the instance: mmengine has no hook between the backward pass and the step.
            wrapper.update_params = partial(self._update_params, wrapper.update_params)
            wrapper.step = partial(self._step, wrapper, wrapper.step)
        if self.action == 'skip':
            self._buffers = list(runner.model.buffers())
            self._kept = [buffer.detach().clone() for buffer in self._buffers]

    def after_train(self, runner: Runner) -> None:
        """Unwrap the optimizers, and say how many updates were left out."""
        for wrapper in _wrappers(runner.optim_wrapper).values():
            vars(wrapper).pop('update_params', None)
            vars(wrapper).pop('step', None)
        if self.skipped:
            runner.logger.warning(
                f'{self.skipped} updates were skipped in this run because of losses or gradients '
                'that are not finite.'
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

    def before_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Keep a copy of the buffers, where an update may be skipped."""
        self._verdicts, self._dropped = [], False
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Report what is not finite; stop where that was asked for."""
        self._check_scale(runner)
        if not self._verdicts:
            return
        bad = torch.stack(self._verdicts).amax(0).tolist()
        if not any(bad):
            return
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(kept)
        text = self._report(runner, bad[get_rank()] == max(bad), data_batch, outputs)
        if self.action == 'skip':
            self._poisoned = not self._dropped  # no step was due: leave out the one that will be
            count = self.skipped + self._poisoned
            runner.logger.warning(f'{text}\nThis update is skipped, number {count} of the run.')
            if self._in_a_row < self.max_in_a_row:
                return
            text += f'\n{self._in_a_row} updates in a row were skipped.'
            way_out = '; look at the images and annotations of the batch.'
        else:
            way_out = ', or leave such batches out: default_hooks.nonfinite.action=skip'
        if get_rank() != 0:
            raise NonFiniteError('stopped together with process 0, whose message says why.')
        raise NonFiniteError(
            f'{text}\nResume from the last checkpoint (--resume) with a lower learning rate or '
            f'optim_wrapper.clip_grad{way_out}'
        )

    def _report(self, runner, mine: bool, data_batch, outputs) -> str:
        """Describe and save the batches of the processes that met something."""
        text, losses = _describe(data_batch, outputs or {}) if mine else (None, {})
        if text and self._saved < self.save_inputs:
            self._saved += 1
            text += f'; {_save_batch(runner, data_batch, losses, text)}'
        texts = all_gather_object(text)
        where = f'iteration {runner.iter + 1} (epoch {runner.epoch + 1})'
        if len(texts) == 1:
            return f'{where}: {text}'
        found = [f'process {rank}: {text}' for rank, text in enumerate(texts) if text is not None]
        return f'{where}, ' + ' | '.join(found)

    def _check_scale(self, runner: Runner) -> None:
        """Warn of a small gradient scale, and again each time it falls much further."""
        for name, wrapper in _wrappers(runner.optim_wrapper).items():
            scaler = getattr(wrapper, 'loss_scaler', None)
            if scaler is None or not scaler.is_enabled():
                continue
            scale = scaler.get_scale()
            if scale >= self.min_scale:
                self._warned.pop(name, None)
            elif scale <= self._warned.get(name, float('inf')) / _WARN_EVERY:
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
    found = [p.grad for group in groups for p in group['params'] if p.grad is not None]
    found = [gradient.detach() for gradient in found if gradient.layout == torch.strided]
    if not found:
        return None
    # Norms of squares are several times faster on CPUs than a look at each element.
    norms = torch._foreach_norm(found)
    flat = [norm.to(norms[0].device, torch.float32) for norm in norms]
    return ~torch.stack(flat).isfinite().all()


def _of_all_processes(loss: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Share what is bad, (processes,) int32: 2 for a loss, 1 for gradients alone, else 0."""
    flags = torch.zeros(get_world_size(), dtype=torch.int32, device=loss.device)
    flags[get_rank()] = torch.where(loss, 2, gradients.int())
    all_reduce(flags)
    return flags


def _describe(data_batch: Any, outputs: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """Say which losses are not finite, and of which files; return the losses, too."""
    losses = {}
    for name, value in outputs.items():
        with suppress(TypeError, ValueError, RuntimeError):  # e.g. a tensor of several elements
            losses[name] = float(value.detach() if isinstance(value, torch.Tensor) else value)
    bad = [f'{name} is {value}' for name, value in losses.items() if not math.isfinite(value)]
    good = [f'{name} {value:.4g}' for name, value in losses.items() if math.isfinite(value)]
    text = ', '.join(bad) or 'the gradients are not finite'
    if good:
        text += f' ({", ".join(good)})'
    files = _files_of(data_batch)
    if files:
        more = f' and {len(files) - _MAX_NAMED} more' if len(files) > _MAX_NAMED else ''
        text += f'; batch: {", ".join(files[:_MAX_NAMED])}{more}'
    return text, losses


def _files_of(data: Any) -> list[str]:
    """List the files of a batch, from nested containers with ``img_path`` and the like."""
    if isinstance(data, BaseDataElement):
        data = data.metainfo
    if isinstance(data, Mapping):
        paths = [data.get(key) for key in ('img_path', 'lidar_path', 'file_name')]
        own = [os.fspath(path) for path in paths if isinstance(path, (str, os.PathLike))]
        return own or [path for value in data.values() for path in _files_of(value)]
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return [path for value in data for path in _files_of(value)]
    return []


def _to_plain(data: Any) -> Any:
    """Turn a batch into what ``torch.load(weights_only=True)`` reads; the rest becomes text."""
    if isinstance(data, torch.Tensor):
        return data.detach().as_subclass(torch.Tensor).cpu().clone()  # not the storage of a view
    if isinstance(data, BaseDataElement):
        items = {key: _to_plain(value) for key, value in data.all_items()}
        return dict(metainfo=_to_plain(data.metainfo), **items)
    if isinstance(data, np.ndarray) and data.dtype.kind in 'biuf':
        return torch.from_numpy(np.ascontiguousarray(data))
    if isinstance(data, (np.ndarray, np.generic)):
        return _to_plain(data.tolist())
    if isinstance(data, Mapping):
        return {k if isinstance(k, int) else str(k): _to_plain(v) for k, v in data.items()}
    if isinstance(data, (tuple, list)):
        return [_to_plain(value) for value in data]
    if data is None or type(data) in (bool, int, float, str):
        return data
    inner = getattr(data, 'tensor', None)  # boxes of mmdet
    return _to_plain(inner) if isinstance(inner, torch.Tensor) else str(data)


def _save_batch(runner, data_batch: Any, losses: dict[str, float], message: str) -> str:
    """Save ``nonfinite/iter_N.pth`` with a sheet of the images; say where, or why it failed."""
    number = runner.iter + 1
    name = f'iter_{number}' + (f'_process_{get_rank()}' if get_world_size() > 1 else '')
    path = Path(runner.work_dir) / 'nonfinite' / f'{name}.pth'
    content = _to_plain(data_batch if isinstance(data_batch, Mapping) else {'batch': data_batch})
    content.update(iteration=number, epoch=runner.epoch + 1, losses=losses, message=message)
    sheet = path.with_suffix('.png')
    try:
        save_checkpoint(content, path)
        drawn = f' and {sheet.name}' if _draw(runner, data_batch, sheet) else ''
    except (CheckpointError, OSError, RuntimeError) as error:  # torch's writer raises the latter
        return f'its inputs could not be saved: {error}'
    return f'saved in {path}{drawn}'


def _draw(runner, data_batch: Any, path: Path) -> bool:
    """Draw the images (C, H, W) of a batch; False where there are none."""
    from torchvision.utils import save_image

    inputs = data_batch.get('inputs', ()) if isinstance(data_batch, Mapping) else ()
    images = [x for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 3][:_MAX_DRAWN]
    images = [image for image in images if image.shape[0] in (1, 3)]
    if not images:
        return False
    model = getattr(runner.model, 'module', runner.model)
    preprocessor = getattr(model, 'data_preprocessor', None)
    # OpenCV reads blue first; the preprocessor turns that around.
    is_bgr = any(getattr(preprocessor, name, False) for name in ('_channel_conversion', 'to_rgb'))
    height, width = (max(image.shape[d] for image in images) for d in (1, 2))
    tiles = []
    for image in images:
        image = torch.nan_to_num(image.detach().float().cpu(), posinf=0.0, neginf=0.0)
        image = (image.flip(0) if is_bgr else image).expand(3, -1, -1)
        padding = (0, width - image.shape[2], 0, height - image.shape[1])
        tiles.append(torch.nn.functional.pad(image, padding))
    save_image(tiles, path, nrow=math.ceil(len(tiles) ** 0.5), normalize=True, scale_each=True)
    return True
