"""Stop a training on SIGTERM or SIGUSR1, with a checkpoint to resume from."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement

from coc_mm.engine.fault_tolerance.atomic_checkpoint_hook import AtomicCheckpointHook, record_latest
from coc_mm.errors import print_rank0
from coc_mm.registry import HOOKS

__all__ = ['STOPPED_STATUS', 'PreemptionHandler', 'PreemptionHook']

#: Exit status of a run that stopped on request and can be resumed (EX_TEMPFAIL).
STOPPED_STATUS = 75
# Seconds: Slurm signals every process and torchrun passes signals on; together they are one.
_ONE_REQUEST = 2.0
# Seconds that the loader workers of a training that was signalled wait for it to end them.
_WORKER_GRACE = 120

_SIGNALS = [int(getattr(signal, n)) for n in ('SIGTERM', 'SIGUSR1') if hasattr(signal, n)]
_active: 'PreemptionHandler | None' = None


def _forget_in_child() -> None:
    """Give processes forked by a training the default handlers."""
    global _active
    if _active is not None:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        _active = None


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget_in_child)


class PreemptionHandler:
    """Context in which SIGTERM and SIGUSR1 ask for a stop; a second one ends the process at once.

    The interpreter runs handlers in its main thread, which may be waiting for another process in
    C; so a thread reads the signals. Outside of the main thread the context does nothing.

    Attributes:
        asked (str): Name of the signal that came, empty before.
        training (c_byte): A flag shared with workers; 0 once the context is left.
    """

    def __init__(self) -> None:
        self.asked = ''
        self.training = multiprocessing.RawValue('b', 0)

        self._first = 0.0
        self._before: dict | None = None
        self._stopped = False

    def __enter__(self) -> 'PreemptionHandler':
        global _active
        self.training.value = 1
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._theirs = theirs
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._fd_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
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
            signal.signal(number, signal.SIG_IGN if self._stopped else handler)
        self._theirs.close()  # ends the thread

    def stopped(self) -> None:
        """Take no further request: everything is saved and the process about to end."""
        self._stopped = True

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
        elif now - self._first > _ONE_REQUEST and not self._stopped:
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


class _Agreement:
    """Whether any process was asked to stop, known to all at the same iteration.

    The answer of one iteration is read at the next, so nobody waits.
    """

    def __init__(self) -> None:
        self.reached = False
        self._group: Any = None
        if get_world_size() > 1:
            self._group = dist.new_group(backend='gloo')
        self._pending: Any = None

    def ask(self, asked: bool) -> bool:
        """Say whether this process was asked; tell whether any was."""
        if self.reached:
            return True
        if self._group is None:
            self.reached = asked
            return asked
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            self.reached = bool(flag.item())
        if self.reached:
            self._pending = None
            return True
        flag = torch.tensor([int(asked)])
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = flag, work
        return False

    def least(self, number: int) -> int:
        """Give the least of the processes' numbers."""
        if self._group is None:
            return number
        found = torch.tensor([number])
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self._group)
        return int(found)


@HOOKS.register_module(name=['PreemptionHook', 'StopHook'])
class PreemptionHook(Hook):
    """Save a checkpoint and end the process with :data:`STOPPED_STATUS`, where that was asked for.

    That is after the current iteration (one later with several processes, which agree), or after
    the group of iterations whose gradients are accumulated, and between two batches of a
    validation. Part of every run by ``tools/train.py``.

    Args:
        signals (PreemptionHandler, optional): The context of the training; None for no requests.
    """

    priority = 'LOWEST'

    def __init__(self, signals: PreemptionHandler | None = None) -> None:
        self.signals = signals or PreemptionHandler()  # not entered: nobody asks
        self._saved_at = -1
        self._common = 0

    def before_run(self, runner: Runner) -> None:
        """Let the workers of the loaders live on after a signal to all processes."""
        self.agreement = _Agreement()
        for loop in (runner._train_loop, runner._val_loop):
            loader = getattr(loop, 'dataloader', None)
            if loader is not None:
                start = _WorkerStart(loader.worker_init_fn, self.signals.training)
                loader.worker_init_fn = start

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember what needs not be written again."""
        if 'optimizer' in checkpoint:
            self._saved_at = checkpoint['meta']['iter']

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Stop here, if that was asked for."""
        if not self.agreement.ask(bool(self.signals.asked)) or not _has_stepped(runner):
            return
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if not by_epoch or batch_idx + 1 < len(runner.train_loop.dataloader):
            self._stop(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop here, if that was asked for in the last iteration."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch and self.agreement.reached and _has_stepped(runner):
            self._stop(runner, runner.epoch + 1, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find out how many iterations all processes have."""
        self._common = 0
        if runner._train_loop is not None:
            self._common = self.agreement.least(len(runner.val_loop.dataloader))

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Stop within a validation; the resumed run begins with it."""
        if batch_idx < self._common and self.agreement.ask(bool(self.signals.asked)):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # its weights are in the model while validating
                    hook.after_val_epoch(runner)
            self._stop(runner, runner.epoch, runner.iter)

    def _stop(self, runner, epoch: int, iteration: int) -> None:
        saved = None
        keeper = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        if keeper is not None and self._saved_at != iteration:
            saved = _save(runner, keeper, epoch, iteration)
        self.agreement.least(0)  # all have saved: a launcher that sees one end may kill the others
        self.signals.stopped()
        if is_main_process():
            path = saved or getattr(keeper, 'last_ckpt', None)
            what = f'saved {path}; go on with --resume' if path else 'the config saves nothing'
            end = runner.max_iters
            print(f'stopped after iteration {iteration} of {end}: {what}.', flush=True)
        raise SystemExit(STOPPED_STATUS)


def _has_stepped(runner) -> bool:
    """Whether no gradients are waiting for those of further iterations."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
    return all(each.should_update() for each in wrappers)


def _save(runner, keeper: CheckpointHook, epoch: int, iteration: int) -> str:
    if isinstance(keeper, AtomicCheckpointHook):
        return keeper.save_stopped(runner, epoch, iteration)
    name = f'stopped_iter_{iteration}.pth'
    meta = dict(epoch=epoch, iter=iteration)
    runner.save_checkpoint(keeper.out_dir, name, meta=meta, by_epoch=False)
    path = os.path.join(keeper.out_dir, name)
    record_latest(runner, path)
    return path
