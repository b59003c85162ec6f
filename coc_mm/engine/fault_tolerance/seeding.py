"""Random numbers that depend on the position in a run alone.

Every iteration seeds the generators of its process from the seed of the run and the number of the
iteration, and every sample those of the process that loads it from the seed, the epoch and its
position in the order of samples. So a resumed run draws what an undisturbed run draws there, with
any number of workers, and samples are augmented alike with any number of processes.
"""

import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset

from coc_mm.registry import HOOKS

# The first of the numbers that a seed is made of.
_STEP, _SAMPLE, _EPOCH, _VALIDATION = range(4)
# What the message hub, and with it a checkpoint, holds: samples of the epoch that were trained.
_POSITION = 'epoch_position'


def seed_for(*key: int, everywhere: bool = True) -> None:
    """Seed Python, NumPy and torch, ``everywhere`` on accelerators, too, from numbers >= 0."""
    words = np.random.SeedSequence(key).generate_state(4)
    number = int(words[0]) | int(words[1] & 0x7FFFFFFF) << 32
    random.seed(number)
    np.random.seed(words)
    if everywhere:
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


def adopt_seed(config: Config, meta: dict) -> tuple[int, int] | None:
    """Let a resumed run draw from the seed that it was begun with, given its checkpoint's meta.

    mmengine takes it over only after the samplers have been built. Returns the config's seed and
    the checkpoint's, where they differ.
    """
    seed = meta.get('seed')
    randomness = dict(config.get('randomness') or {})
    own = randomness.get('seed')
    if seed is None or own == seed:
        return None
    config.randomness = dict(randomness, seed=seed)
    return None if own is None else (own, seed)


def is_inside_epoch(runner: Runner) -> bool:
    """Whether a run by epochs is between the first and the last iteration of one."""
    position = runner.message_hub.get_info(_POSITION)
    if position is not None:
        return position['samples'] > 0
    return runner.iter != runner.epoch * len(runner.train_loop.dataloader)


class _SeededIndex(NamedTuple):
    """An index of a data set, and what its random numbers are seeded from."""

    number: int
    key: tuple[int, ...]


def _get_items(dataset, drawn: list) -> list:
    """Seed for each sample, as the ``__getitems__`` of a data set, which torch's loaders prefer."""
    batched = getattr(type(dataset), '__getitems__', None)
    items: list = []
    for group in [drawn] if batched else [[draw] for draw in drawn]:
        if isinstance(group[0], _SeededIndex):
            seed_for(*group[0].key, everywhere=False)
            group = [draw.number for draw in group]
        items += batched(dataset, group) if batched else [dataset[group[0]]]
    return items


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
            epoch, drawn = runner.epoch, sum(map(len, islice(batches, self.skipped)))
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
    there, at the batch that holds the next sample; what was trained before is not loaded.
    """

    priority = 'HIGHEST'

    _batches: _SeededBatches | None = None  # of a run by epochs

    def before_train(self, runner: Runner) -> None:
        """Wrap the batch sampler and the data set of the training."""
        loader = runner.train_loop.dataloader
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            return
        batches = _SeededBatches(loader.batch_sampler, loader, runner)
        # DataLoader refuses another batch sampler, which may disagree with its arguments.
        loader.__dict__['batch_sampler'] = batches
        loader.dataset.__getitems__ = partial(_get_items, loader.dataset)
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._batches = batches
            saved = runner.message_hub.get_info(_POSITION) if runner._resume else None
            trained = runner.iter - runner.epoch * len(loader)
            samples = trained * self._total_batch() if 0 < trained < len(loader) else 0
            if saved is not None:  # another data set has another order: its epoch starts anew
                samples = saved['samples'] if saved['of'] == len(loader.dataset) else 0
            self._move_to(runner, samples)

    def _total_batch(self) -> int:
        return (getattr(self._batches, 'batch_size', None) or 1) * get_world_size()

    def _move_to(self, runner, samples: int) -> None:
        size = len(runner.train_loop.dataloader.dataset)
        runner.message_hub.update_info(_POSITION, dict(samples=samples, of=size))

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed for the hooks of an epoch, and skip what of it was trained before."""
        seed_for(_EPOCH, runner.seed, runner.epoch)
        if self._batches is None:
            return
        first = runner.message_hub.get_info(_POSITION)['samples'] // self._total_batch()
        self._batches.skipped = first
        self._move_to(runner, first * self._total_batch())
        if first:
            total = len(runner.train_loop.dataloader)
            runner.logger.info(
                f'Epoch {runner.epoch + 1} goes on after {first} of its {total} iterations.'
            )
            run_iter = runner.train_loop.run_iter  # under its number in the whole epoch
            runner.train_loop.run_iter = lambda index, batch: run_iter(index + first, batch)

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Count the samples of the epoch, before anybody saves a checkpoint."""
        if self._batches is not None:
            self._move_to(runner, (batch_idx + 1) * self._total_batch())

    def after_train_epoch(self, runner: Runner) -> None:
        """Begin the next epoch at its beginning."""
        vars(runner.train_loop).pop('run_iter', None)
        if self._batches is not None:
            self._move_to(runner, 0)

    def before_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Seed for an iteration."""
        seed_for(_STEP, runner.seed, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Seed for a validation."""
        seed_for(_VALIDATION, runner.seed, runner.iter)
