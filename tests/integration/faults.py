"""Hooks and a transform that break a run on purpose, named in configs as ``faults.Die``."""

import os
import signal
import time

from mmengine.dist import get_rank
from mmengine.hooks import Hook


class _At(Hook):
    """Does something once, in one process."""

    def __init__(self, iteration, rank=0):
        self.iteration, self.rank = iteration, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration and get_rank() == self.rank:
            self.act(runner)


class Die(_At):
    def act(self, runner):
        os.kill(os.getpid(), signal.SIGKILL)


class Fail(_At):
    def act(self, runner):
        raise RuntimeError('broken on purpose')


class Hang(_At):
    def act(self, runner):
        time.sleep(10)  # the timeout is 3


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
