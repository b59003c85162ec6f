"""Atomic checkpoint writing: at every moment there is a complete checkpoint."""

import os
from functools import partial
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from coc_mm.compat.atomic_backend import use_atomic_saving
from coc_mm.errors import InputError
from coc_mm.registry import HOOKS
from coc_mm.utils.atomic_io import atomic_write

_OUTDATED = 'outdated_ckpts'


def use_atomic_checkpoints(config: Config) -> None:
    """Replace mmengine's checkpoint hook in a config, and its local files in this process."""
    use_atomic_saving()
    hooks = config.setdefault('default_hooks', ConfigDict())
    hook = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook'))
    replaced = ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook)
    if isinstance(hook, dict) and hook.get('type') in replaced:
        hook['type'] = 'coc_mm.AtomicCheckpointHook'


def record_latest(runner: Runner, path: str) -> None:
    """Write the path of the latest checkpoint where mmengine looks for it."""
    if is_main_process():
        with atomic_write(os.path.join(runner.work_dir, 'last_checkpoint'), sync=True) as file:
            file.write_bytes(os.fsencode(path))


class _DeferringBackend:
    """The storage of a :class:`CheckpointHook`, which defers what is to be removed."""

    def __init__(self, backend, defer):
        self.backend = backend
        self.remove = self.rmtree = defer

    def __getattr__(self, name):
        return getattr(self.backend, name)


@HOOKS.register_module(name=['AtomicCheckpointHook', 'WholeCheckpointHook'])
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, safe against being killed at any moment.

    Unlike mmengine, it removes an outdated checkpoint, or the former best one, once the next one
    is complete and recorded in ``last_checkpoint``; the checkpoint names those still to be
    removed. Arguments are those of ``CheckpointHook``, which ``tools/train.py`` replaces.
    """

    _position: tuple[int, int] | None = None  # epochs and iterations of the last checkpoint
    file_backend: Any  # mmengine's
    last_ckpt: str | None

    def before_train(self, runner: Runner) -> None:
        """Take up the bookkeeping, also of a run that was killed."""
        super().before_train(runner)
        self.file_backend = _DeferringBackend(self.file_backend, partial(self._defer, runner))
        if self.last_ckpt is None and runner._resume:
            self.last_ckpt = runner._load_from
        self._remove_outdated(runner)

    def _defer(self, runner, path) -> None:
        outdated = runner.message_hub.runtime_info.get(_OUTDATED, [])
        if path not in outdated:
            runner.message_hub.update_info(_OUTDATED, [*outdated, path])

    def _remove_outdated(self, runner) -> None:
        """Remove what was deferred, except what has been written again since."""
        outdated = runner.message_hub.runtime_info.get(_OUTDATED, [])
        # What a run goes on from stays until it has written a checkpoint of its own.
        start = None if self._position else os.path.basename(str(runner._load_from))
        kept = [path for path in outdated if os.path.basename(path) == start]
        if outdated:
            runner.message_hub.update_info(_OUTDATED, kept)
        if not is_main_process():
            return
        best = [getattr(self, 'best_ckpt_path', None)]
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        in_use = {os.path.basename(str(path)) for path in (self.last_ckpt, *best)}
        backend = self.file_backend.backend
        for name in {os.path.basename(path) for path in outdated if path not in kept} - in_use:
            # A folder that was moved has its files under another path.
            path = backend.join_path(self.out_dir, name)
            if backend.isfile(path):
                backend.remove(path)
            elif backend.isdir(path):
                backend.rmtree(path)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            while len(self.keep_ckpt_ids) >= self.max_keep_ckpts:
                name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                self._defer(runner, self.file_backend.join_path(self.out_dir, name))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save_as(runner, self.filename_tmpl.format(step), meta)

    def save_stopped(self, runner: Runner, epoch: int, iteration: int) -> str:
        """Write a checkpoint where none is due, which the next one replaces; return its path."""
        name = f'stopped_iter_{iteration}.pth'
        self._defer(runner, self.file_backend.join_path(self.out_dir, name))
        self._save_as(runner, name, dict(epoch=epoch, iter=iteration), complete=True)
        return str(self.last_ckpt)

    def _save_as(self, runner, name: str, meta: dict, complete: bool = False) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._position = meta['epoch'], meta['iter']
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=complete or self.save_optimizer,
            save_param_scheduler=complete or self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        record_latest(runner, self.last_ckpt)
        self._remove_outdated(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Save the best checkpoint; refuse a metric that the evaluation does not give."""
        for key in self.save_best if isinstance(self.save_best, list) else [self.save_best]:
            if metrics and key not in (None, 'auto', *metrics):
                raise InputError(
                    f'default_hooks.checkpoint.save_best is {key!r}, which the evaluation does not '
                    f'give; it gives {", ".join(metrics)}.'
                )
        super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Correct the position, which ``FlexibleRunner`` counts otherwise."""
        if self._position is not None and 'optimizer' in checkpoint:
            checkpoint['meta'].update(epoch=self._position[0], iter=self._position[1])
