"""Randomness that depends on the place in the run, not on what the process did before.

A generator that is seeded once cannot be continued by another process: data loader workers keep
states of their own and work ahead of the training. Here every iteration seeds the generators of
its process from the seed of the run and the number of the iteration, and every sample those of
the process that loads it from the seed, the epoch and its place in the order of samples. So a run
that goes on at any iteration draws what an undisturbed run draws there, with any number of
workers, and its samples are augmented alike with any number of processes.
"""

import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset

from coc_mm.registry import HOOKS

__all__ = ['StepSeedHook', 'seed_for']

# What is seeded for; the first of the numbers that a seed is made of.
_STEP, _SAMPLE, _EPOCH, _VALIDATION = range(4)


def seed_for(*place: int, everywhere: bool = True) -> None:
    """Seed the generators of Python, NumPy and torch.

    Args:
        *place (int): Numbers of 0 or more; others give unrelated random numbers.
        everywhere (bool): Whether torch's generators of accelerators are seeded, too.
            Defaults to True.
    """
    words = np.random.SeedSequence(place).generate_state(4)
    number = int(words[0]) | int(words[1] & 0x7FFFFFFF) << 32
    random.seed(number)
    np.random.seed(words)
    if everywhere:
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


class _Draw(NamedTuple):
    """An index of a data set, and the place that its randomness is seeded for."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    place: tuple[int, ...]


class _SeededItems:
    """``__getitems__`` of a data set, which torch's loaders prefer, seeding for each sample."""

    def __init__(self, dataset):
        self._dataset = dataset

    def __call__(self, drawn: list) -> list:
        batched = getattr(type(self._dataset), '__getitems__', None)
        if batched is not None:
            if drawn and isinstance(drawn[0], _Draw):
                seed_for(*drawn[0].place, everywhere=False)
            plain = [draw.index if isinstance(draw, _Draw) else draw for draw in drawn]
            return batched(self._dataset, plain)
        return [self._get(draw) for draw in drawn]

    def _get(self, draw) -> Any:
        if not isinstance(draw, _Draw):
            return self._dataset[draw]
        seed_for(*draw.place, everywhere=False)
        return self._dataset[draw.index]


class _PlacedBatches:
    """A batch sampler that says of every sample where in the run it is drawn."""

    def __init__(self, batches, loader: DataLoader, runner):
        self._batches, self._loader, self._runner = batches, loader, runner
        self._passes = 0
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __iter__(self) -> Iterator[list[_Draw]]:
        runner, batches = self._runner, iter(self._batches)
        rank, world = get_dist_info()
        drawn = 0
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            epoch = runner.epoch
            for batch in islice(batches, self.skipped):
                drawn += len(batch)
        else:
            epoch = self._passes
            if epoch == 0 and hasattr(self._loader.sampler, 'skip'):  # mmengine has advanced it
                drawn = runner.iter * (self._loader.batch_size or 0)
            self._passes += 1
        for batch in batches:
            seed = _SAMPLE, runner.seed, epoch
            yield [_Draw(i, (*seed, (drawn + n) * world + rank)) for n, i in enumerate(batch)]
            drawn += len(batch)


@HOOKS.register_module(name=['StepSeedHook', 'PlacedRandomnessHook'])
class StepSeedHook(Hook):
    """Makes what a run draws at random depend on the place in it alone.

    Put into every run by ``tools/train.py``. A run by epochs that is resumed inside one goes on
    there: its batches trained before are passed over without being loaded.
    """

    priority = 'HIGHEST'

    def before_train(self, runner: Runner) -> None:
        """Number what the loader of the training draws.

        Args:
            runner (Runner): Of the training.
        """
        loader = runner.train_loop.dataloader
        self._batches = None
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            return
        self._batches = _PlacedBatches(loader.batch_sampler, loader, runner)
        # DataLoader refuses to be given another batch sampler, for its arguments may disagree
        # with it; this one draws the same.
        loader.__dict__['batch_sampler'] = self._batches
        loader.dataset.__getitems__ = _SeededItems(loader.dataset)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed for the hooks of an epoch, and pass over what of it was trained before.

        Args:
            runner (Runner): Of the training.
        """
        seed_for(_EPOCH, runner.seed, runner.epoch)
        loop = runner.train_loop
        if self._batches is None or not isinstance(loop, EpochBasedTrainLoop):
            return
        length = len(loop.dataloader)
        first = loop.iter - runner.epoch * length
        # With another total batch the place cannot be found; the epoch starts anew.
        self._batches.skipped = first if 0 < first < length else 0
        if self._batches.skipped:
            runner.logger.info(
                f'Epoch {runner.epoch + 1} goes on after {first} of its {length} iterations.'
            )
            loop.run_iter = partial(_run_later, loop.run_iter, first)

    def after_train_epoch(self, runner: Runner) -> None:
        """Begin the next epoch at its beginning.

        Args:
            runner (Runner): Of the training.
        """
        runner.train_loop.__dict__.pop('run_iter', None)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Seed for an iteration.

        Args:
            runner (Runner): Of the training.
            batch_idx (int): Not used.
            data_batch: Not used.
        """
        seed_for(_STEP, runner.seed, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Seed for a validation.

        Args:
            runner (Runner): Of the training.
        """
        seed_for(_VALIDATION, runner.seed, runner.iter)


def _run_later(run_iter, first: int, index: int, batch) -> None:
    """Run an iteration under its number in the whole epoch."""
    run_iter(index + first, batch)
