"""Stop a training on SIGTERM or SIGUSR1, with a checkpoint to resume from."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from multiprocessing.util import get_temp_dir
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from coc_mm.engine.fault_tolerance.atomic_checkpoint_hook import AtomicCheckpointHook, record_latest
from coc_mm.errors import print_rank0
from coc_mm.registry import HOOKS

#: Exit status of a run that stopped on request and can be resumed (EX_TEMPFAIL).
STOPPED_STATUS = 75
_ONE_REQUEST = 2.0  # seconds: Slurm and torchrun may both pass a signal on, which is one request
_WORKER_GRACE = 120  # seconds that loader workers of a signalled training wait to be ended
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_active: 'PreemptionHandler | None' = None


def _forget_in_child() -> None:
    """Give processes forked by a training the default handlers."""
    global _active
    if _active is not None:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        _active = None


os.register_at_fork(after_in_child=_forget_in_child)


class PreemptionHandler:
    """Context in which SIGTERM and SIGUSR1 ask for a stop; a second one ends the process at once.

    A thread reads the signals, as the main one may be waiting for another process in C. Outside
    of the main thread the context does nothing.
    """

    def __init__(self) -> None:
        self.asked = ''  # name of the signal that came
        self.training = multiprocessing.RawValue('b', 0)  # shared with workers
        self.stopped = False  # everything is saved: take no further request
        self._first = 0.0
        self._before: dict | None = None

    def __enter__(self) -> 'PreemptionHandler':
        global _active
        self.training.value = 1
        get_temp_dir()  # workers share it, or leave theirs behind where a signal ends them
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._fd_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)  # the thread below acts
            signal.siginterrupt(number, False)
        threading.Thread(target=self._listen, daemon=True, name='stop-signals').start()
        _active = self
        return self

    def __exit__(self, *_) -> None:
        global _active
        self.training.value = 0
        if self._before is None:
            return
        _active = None
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.stopped else handler)
        self._theirs.close()  # ends the thread

    def _listen(self) -> None:
        with self._ours:
            while received := self._ours.recv(64):
                for number in received:
                    if number in _SIGNALS:
                        self._receive(number)

    def _receive(self, number: int) -> None:
        now = time.monotonic()
        if not self.asked:
            self._first, self.asked = now, signal.Signals(number).name
            print_rank0(f'\n{self.asked}: the training stops after this iteration and saves.')
        elif now - self._first > _ONE_REQUEST and not self.stopped:
            os._exit(128 + number)


class _WorkerStart:
    """``worker_init_fn`` of a loader whose workers survive a signal sent to the whole run."""

    def __init__(self, start, training):
        self._start, self._training = start, training

    def __call__(self, worker_id: int) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._receive)
        if self._start is not None:
            self._start(worker_id)

    def _receive(self, *_) -> None:
        if not self._training.value:  # the training has ended and ends its workers
            os._exit(0)
        signal.alarm(_WORKER_GRACE)


@HOOKS.register_module(name=['PreemptionHook', 'StopHook'])
class PreemptionHook(Hook):
    """Save a checkpoint and end the process with :data:`STOPPED_STATUS`, where that was asked for.

    That is after the current iteration (one later with several processes) or group of accumulated
    ones, and between two batches of a validation. Part of every run by ``tools/train.py``.
    """

    priority = 'LOWEST'

    def __init__(self, signals: PreemptionHandler | None = None) -> None:
        self.signals = signals or PreemptionHandler()  # not entered: nobody asks
        self._saved_at = -1
        self._common = 0
        self._reached = False  # any process was asked, and all know
        self._pending: Any = None

    def before_run(self, runner: Runner) -> None:
        """Let the workers of the loaders live on after a signal to all processes."""
        self._group: Any = dist.new_group(backend='gloo') if get_world_size() > 1 else None
        for loop in (runner._train_loop, runner._val_loop):
            loader = getattr(loop, 'dataloader', None)
            if loader is not None:
                loader.worker_init_fn = _WorkerStart(loader.worker_init_fn, self.signals.training)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember what needs not be written again."""
        if 'optimizer' in checkpoint:
            self._saved_at = checkpoint['meta']['iter']

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Stop here, if that was asked for."""
        if not self._is_asked() or not _has_stepped(runner):
            return
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if not by_epoch or batch_idx + 1 < len(runner.train_loop.dataloader):
            self._stop(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop here, if that was asked for in the last iteration."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch and self._reached and _has_stepped(runner):
            self._stop(runner, runner.epoch + 1, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find out how many iterations all processes have."""
        self._common = 0
        if runner._train_loop is not None:
            self._common = self._least(len(runner.val_loop.dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Stop within a validation; the resumed run begins with it."""
        if batch_idx < self._common and self._is_asked():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # its weights are in the model while validating
                    hook.after_val_epoch(runner)
            self._stop(runner, runner.epoch, runner.iter)

    def _is_asked(self) -> bool:
        """Whether any process was asked to stop; all know it one iteration later: nobody waits."""
        asked = bool(self.signals.asked)
        if self._group is None:
            self._reached = self._reached or asked
            return self._reached
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            self._reached, self._pending = bool(flag), None
        if not self._reached:
            flag = torch.tensor([int(asked)])
            work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
            self._pending = flag, work
        return self._reached

    def _least(self, number: int) -> int:
        """Give the least of the processes' numbers."""
        found = torch.tensor([number])
        if self._group is not None:
            dist.all_reduce(found, dist.ReduceOp.MIN, group=self._group)
        return int(found)

    def _stop(self, runner, epoch: int, iteration: int) -> None:
        keeper = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        path = getattr(keeper, 'last_ckpt', None)
        if keeper is not None and self._saved_at != iteration:
            path = _save(runner, keeper, epoch, iteration)
        self._least(0)  # all have saved: a launcher that sees one end may kill the others
        self.signals.stopped = True
        if is_main_process():
            what = f'saved {path}; go on with --resume' if path else 'the config saves nothing'
            print(f'stopped after iteration {iteration} of {runner.max_iters}: {what}.', flush=True)
        raise SystemExit(STOPPED_STATUS)


def _has_stepped(runner) -> bool:
    """Whether no gradients are waiting for those of further iterations."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
    return all(each.should_update() for each in wrappers)


def _save(runner, keeper: CheckpointHook, epoch: int, iteration: int) -> str:
    if isinstance(keeper, AtomicCheckpointHook):
        return keeper.save_stopped(runner, epoch, iteration)
    name, meta = f'stopped_iter_{iteration}.pth', dict(epoch=epoch, iter=iteration)
    runner.save_checkpoint(keeper.out_dir, name, meta=meta, by_epoch=False)
    path = os.path.join(keeper.out_dir, name)
    record_latest(runner, path)
    return path
