"""Signals that ask a training to stop, and the hook that saves and stops it."""

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
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement

from coc_mm.engine.fault_tolerance.atomic_checkpoint_hook import AtomicCheckpointHook, record_latest
from coc_mm.registry import HOOKS

__all__ = ['STOPPED_STATUS', 'PreemptionHandler', 'PreemptionHook']

#: Exit status of a run that was asked to stop, saved and can be resumed (EX_TEMPFAIL).
STOPPED_STATUS = 75
# Slurm signals every process and torchrun hands signals on: what comes together is one request.
_ONE_REQUEST = 2.0
# Workers go on for their training, which ends them; without it they end by themselves.
_WORKERS_GO_ON = 120

_NAMES = ('SIGTERM', 'SIGUSR1')
_active: 'PreemptionHandler | None' = None


def _forget_in_child() -> None:
    """Let processes forked by a training die of signals as others do."""
    global _active
    if _active is not None:
        signal.set_wakeup_fd(-1)
        for number in _active.numbers:
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
        numbers (list[int]): The signals.
        training (c_byte): A flag shared with workers; 0 once the context is left.
    """

    def __init__(self) -> None:
        self.asked = ''
        self.training = multiprocessing.RawValue('b', 0)
        self.numbers = [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]
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
        self._before = {number: signal.getsignal(number) for number in self.numbers}
        self._fd_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in self.numbers:
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
                    if number in self.numbers:
                        self._receive(number)

    def _receive(self, number: int) -> None:
        now = time.monotonic()
        if not self.asked:
            self._first, self.asked = now, signal.Signals(number).name
            if is_first_process():
                said = f'\n{self.asked}: the training stops after this iteration and saves.\n'
                os.write(1, said.encode())
        elif now - self._first > _ONE_REQUEST and not self._stopped:
            os._exit(128 + number)


def is_first_process() -> bool:
    """Tell rank 0, by the variable of the launchers, from a thread or before there is a group."""
    return int(os.environ.get('RANK', 0)) == 0


class _WorkerStart:
    """``worker_init_fn`` of a loader, whose workers outlive a signal that the run is sent."""

    def __init__(self, start, training):
        self._start, self._training = start, training

    def __call__(self, worker_id: int) -> None:
        for name in _NAMES:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._receive)
        if self._start is not None:
            self._start(worker_id)

    def _receive(self, *_) -> None:
        if not self._training.value:  # the training has ended and ends its workers
            os._exit(0)
        signal.alarm(_WORKERS_GO_ON)


class _Agreement:
    """Whether any process of several was asked to stop, known to all at the same iteration.

    What each says at one iteration is known at the next, so nobody waits.
    """

    def __init__(self) -> None:
        self.reached = False
        self._group: Any = dist.new_group(backend='gloo') if _several() else None
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

    def wait(self) -> None:
        """Wait for all processes."""
        self.least(0)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@HOOKS.register_module(name=['PreemptionHook', 'StopHook'])
class PreemptionHook(Hook):
    """Saves a checkpoint and ends the process where a stop has been asked for.

    That is after the current iteration (one later with several processes, which agree), or after
    the group of iterations whose gradients are summed up, and between two images of a validation.
    The process then exits with :data:`STOPPED_STATUS`. Put into every run by ``tools/train.py``.

    Args:
        signals (PreemptionHandler): Where requests are found; None for a run that gets none.
    """

    priority = 'LOWEST'

    def __init__(self, signals: PreemptionHandler | None = None) -> None:
        self.signals = signals or PreemptionHandler()  # not entered: nobody asks
        self._saved_at = -1
        self._common = 0

    def before_run(self, runner: Runner) -> None:
        """Let the workers of the loaders live on after a signal to all processes.

        Args:
            runner (Runner): Of the training.
        """
        self.agreement = _Agreement()
        for loop in (runner._train_loop, runner._val_loop):
            loader = getattr(loop, 'dataloader', None)
            if loader is not None:
                start = _WorkerStart(loader.worker_init_fn, self.signals.training)
                loader.worker_init_fn = start

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember what needs not be written again.

        Args:
            runner (Runner): Of the training.
            checkpoint (dict): About to be written.
        """
        if 'optimizer' in checkpoint:
            self._saved_at = checkpoint['meta']['iter']

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Stop here, if that was asked for.

        Args:
            runner (Runner): Of the training.
            batch_idx (int): Of the iteration in its epoch.
            data_batch: Not used.
            outputs: Not used.
        """
        if not self.agreement.ask(bool(self.signals.asked)) or not _has_stepped(runner):
            return
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if not by_epoch or batch_idx + 1 < len(runner.train_loop.dataloader):
            self._stop(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop here, if that was asked for in the last iteration.

        Args:
            runner (Runner): Of the training.
        """
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch and self.agreement.reached and _has_stepped(runner):
            self._stop(runner, runner.epoch + 1, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find out how many iterations all processes have.

        Args:
            runner (Runner): Of the training.
        """
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
        """Stop within a validation; the resumed run begins with it.

        Args:
            runner (Runner): Of the training.
            batch_idx (int): Of the iteration.
            data_batch: Not used.
            outputs: Not used.
        """
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
        self.agreement.wait()  # a launcher that sees one end may kill the others
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
