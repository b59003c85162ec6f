"""Random numbers that depend on the position in a run alone.

A generator that is seeded once cannot be continued by another process: data loader workers keep
states of their own and work ahead of the training. Here every iteration seeds the generators of
its process from the seed of the run and the number of the iteration, and every sample those of
the process that loads it from the seed, the epoch and its position in the order of samples. So a
resumed run draws what an undisturbed run draws there, with any number of workers, and its samples
are augmented alike with any number of processes.
"""

import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info, get_world_size
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset

from coc_mm.registry import HOOKS

__all__ = ['StepSeedHook', 'is_inside_epoch', 'seed_for']

# What is seeded for; the first of the numbers that a seed is made of.
_STEP, _SAMPLE, _EPOCH, _VALIDATION = range(4)
# What the message hub, and with it a checkpoint, holds: samples of the epoch that were trained.
_POSITION = 'epoch_position'


def seed_for(*key: int, everywhere: bool = True) -> None:
    """Seed the generators of Python, NumPy and torch.

    Args:
        *key (int): Numbers of 0 or more; others give unrelated random numbers.
        everywhere (bool): Also torch's generators of accelerators. Defaults to True.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    number = int(words[0]) | int(words[1] & 0x7FFFFFFF) << 32
    random.seed(number)
    np.random.seed(words)
    if everywhere:
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


def is_inside_epoch(runner: Runner) -> bool:
    """Whether a run by epochs is between the first and the last iteration of one."""
    position = runner.message_hub.get_info(_POSITION)
    if position is not None:
        return position['samples'] > 0
    return runner.iter != runner.epoch * len(runner.train_loop.dataloader)


class _SeededIndex(NamedTuple):
    """An index of a data set, and what its random numbers are seeded from."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    key: tuple[int, ...]


class _SeededItems:
    """``__getitems__`` of a data set, which torch's loaders prefer, seeding for each sample."""

    def __init__(self, dataset):
        self._dataset = dataset

    def __call__(self, drawn: list) -> list:
        batched = getattr(type(self._dataset), '__getitems__', None)
        if batched is None:
            return [self._get(draw) for draw in drawn]
        if drawn and isinstance(drawn[0], _SeededIndex):
            seed_for(*drawn[0].key, everywhere=False)
        plain = [draw.index if isinstance(draw, _SeededIndex) else draw for draw in drawn]
        return batched(self._dataset, plain)

    def _get(self, draw) -> Any:
        if not isinstance(draw, _SeededIndex):
            return self._dataset[draw]
        seed_for(*draw.key, everywhere=False)
        return self._dataset[draw.index]


class _SeededBatches:
    """A batch sampler whose indices carry the key that their samples are seeded from."""

    def __init__(self, batches, loader: DataLoader, runner):
        self._batches, self._loader, self._runner = batches, loader, runner
        self._passes = 0
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __iter__(self) -> Iterator[list[_SeededIndex]]:
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
            yield [
                _SeededIndex(i, (*seed, (drawn + n) * world + rank)) for n, i in enumerate(batch)
            ]
            drawn += len(batch)


@HOOKS.register_module(name=['StepSeedHook', 'PlacedRandomnessHook'])
class StepSeedHook(Hook):
    """Seed every iteration and sample from the position in the run.

    Part of every run by ``tools/train.py``. A run by epochs that is resumed inside one goes on
    there: batches that were trained before are skipped without being loaded. With another batch
    size or number of processes it goes on at the batch that holds the next sample.
    """

    priority = 'HIGHEST'

    _batches: _SeededBatches | None = None  # of a run by epochs

    def before_train(self, runner: Runner) -> None:
        """Wrap the batch sampler and the data set of the training."""
        loader = runner.train_loop.dataloader
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            return
        batches = _SeededBatches(loader.batch_sampler, loader, runner)
        # DataLoader refuses to be given another batch sampler, for its arguments may disagree
        # with it; this one draws the same.
        loader.__dict__['batch_sampler'] = batches
        loader.dataset.__getitems__ = _SeededItems(loader.dataset)
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._batches = batches
            self._move_to(runner, self._find_position(runner))

    def _total_batch(self) -> int:
        return (getattr(self._batches, 'batch_size', None) or 1) * get_world_size()

    @staticmethod
    def _move_to(runner, samples: int) -> None:
        size = len(runner.train_loop.dataloader.dataset)
        runner.message_hub.update_info(_POSITION, dict(samples=samples, of=size))

    def _find_position(self, runner) -> int:
        """Count the samples of this epoch that have been trained."""
        loader = runner.train_loop.dataloader
        saved = runner.message_hub.get_info(_POSITION) if runner._resume else None
        if saved is not None:  # another data set has another order: its epoch starts anew
            return saved['samples'] if saved['of'] == len(loader.dataset) else 0
        batches = runner.iter - runner.epoch * len(loader)
        return batches * self._total_batch() if 0 < batches < len(loader) else 0

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed for the hooks of an epoch, and skip what of it was trained before."""
        seed_for(_EPOCH, runner.seed, runner.epoch)
        if self._batches is None:
            return
        loop = runner.train_loop
        first = runner.message_hub.get_info(_POSITION)['samples'] // self._total_batch()
        self._batches.skipped = first
        self._move_to(runner, first * self._total_batch())
        if first:
            runner.logger.info(
                f'Epoch {runner.epoch + 1} goes on after {first} of its {len(loop.dataloader)} '
                'iterations.'
            )
            loop.run_iter = partial(_run_later, loop.run_iter, first)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Count the samples of the epoch, before anybody saves a checkpoint."""
        if self._batches is not None:
            self._move_to(runner, (batch_idx + 1) * self._total_batch())

    def after_train_epoch(self, runner: Runner) -> None:
        """Begin the next epoch at its beginning."""
        vars(runner.train_loop).pop('run_iter', None)
        if self._batches is not None:
            self._move_to(runner, 0)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Seed for an iteration."""
        seed_for(_STEP, runner.seed, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Seed for a validation."""
        seed_for(_VALIDATION, runner.seed, runner.iter)


def _run_later(run_iter, first: int, index: int, batch) -> None:
    """Run an iteration under its number in the whole epoch."""
    run_iter(index + first, batch)
