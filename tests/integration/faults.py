"""Hooks and a transform that break a run on purpose, named in configs as ``faults.Die``."""

import os
import signal
import time
from pathlib import Path

import torch.distributed as dist
from mmengine.dist import get_rank
from mmengine.hooks import Hook

# Far beyond what a test waits: who is still here then has not been ended.
LONG = 900


class _At(Hook):
    """Does something once, in one process, while the others do something else."""

    def __init__(self, iteration, rank=0, others='train'):
        self.iteration, self.rank, self.others = iteration, rank, others

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 != self.iteration:
            return
        if get_rank() == self.rank:
            self.act(runner)
        elif self.others == 'loop':
            end = time.monotonic() + LONG
            while time.monotonic() < end:
                time.sleep(0.01)
        elif self.others == 'barrier':
            dist.barrier()


class Die(_At):
    def act(self, runner):
        Path(runner.work_dir, 'died').write_text(repr(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)


class Fail(_At):
    def act(self, runner):
        raise RuntimeError('broken on purpose')


class Hang(_At):
    def act(self, runner):
        time.sleep(LONG)


class NanLoss(_At):
    """Makes the loss of an iteration NaN."""

    def act(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        parse = model.parse_losses

        def broken(losses):
            model.parse_losses = parse
            return parse({name: value * float('nan') for name, value in losses.items()})

        model.parse_losses = broken


class KillWorker:
    """A transform that is killed as by a system without memory."""

    def __call__(self, results):
        os.kill(os.getpid(), signal.SIGKILL)
