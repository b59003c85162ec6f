"""Random numbers that depend on the position in a run."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.logging import MessageHub
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader, Dataset

from coc_mm.engine.fault_tolerance.seeding import StepSeedHook, seed_for


class _Noise(Dataset):
    """Samples are their index and what the three generators draw."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


class _Batched(_Noise):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class _Loop(EpochBasedTrainLoop):
    def __init__(self, runner, loader):
        self._runner, self.dataloader = runner, loader

    def run_iter(self, index, batch):
        self.runner.hook.after_train_iter(self.runner, index)


class _Runner:
    """What the hook uses of a runner, around an epoch- or iteration-based loop."""

    def __init__(self, loader, by_epoch=True, epoch=0, iteration=0, saved=None):
        self.seed, self.epoch, self.iter = 5, epoch, iteration
        self.train_loop = _Loop(self, loader) if by_epoch else SimpleNamespace(dataloader=loader)
        self.messages = []
        self.logger = SimpleNamespace(info=self.messages.append)
        self.message_hub = MessageHub('seeding')
        self._resume = saved is not None
        if saved:
            self.message_hub.update_info('epoch_position', saved)
        self.hook = StepSeedHook()
        self.hook.before_train(self)

    def train_epoch(self, steps=None):
        """Return the samples by batch; stop after some steps, or begin the next epoch."""
        self.hook.before_train_epoch(self)
        self.train_loop.dataloader.sampler.set_epoch(self.epoch)
        found = []
        for index, batch in enumerate(self.train_loop.dataloader):
            found.append([tuple(map(float, column)) for column in batch])
            self.train_loop.run_iter(index, batch)
            if len(found) == steps:
                return found
        self.hook.after_train_epoch(self)
        self.epoch += 1
        return found

    @property
    def position(self):
        return self.message_hub.get_info('epoch_position')


def _runner(workers=0, dataset=_Noise, batch_size=2, resume=(), **options):
    data = dataset()
    sampler = DefaultSampler(data, shuffle=True, seed=1)
    loader = DataLoader(data, batch_size, sampler=sampler, num_workers=workers, **options)
    return _Runner(loader, **dict(resume))


def _samples(runner):
    return [sample for batch in runner.train_epoch() for sample in zip(*batch, strict=True)]


def test_numbers_follow_from_the_place():
    def draw(*place):
        seed_for(*place)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(0, 5, 1) == draw(0, 5, 1)
    found = {draw(*place) for place in [(0, 5, 1), (0, 5, 2), (0, 6, 1), (1, 5, 1)]}
    assert len(found) == 4
    state = torch.get_rng_state()
    seed_for(2**40, 1, everywhere=False)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('workers', [0, 2])
def test_samples_do_not_depend_on_who_loads_them_or_what_was_before(workers):
    options = dict(persistent_workers=True) if workers else {}
    undisturbed = _runner()
    reference = [undisturbed.train_epoch() for _ in range(3)]
    again = _runner(workers, **options)
    assert [again.train_epoch() for _ in range(3)] == reference
    assert reference[0] != reference[1]
    stopped = _runner()
    stopped.train_epoch()
    stopped.train_epoch(steps=2)
    later = _runner(workers, resume=dict(epoch=1, iteration=6, saved=stopped.position), **options)
    assert later.train_epoch() == reference[1][2:]
    assert later.messages == ['Epoch 2 goes on after 2 of its 4 iterations.']
    assert later.train_epoch() == reference[2]
    # A checkpoint of mmengine's own, which names no position.
    assert _runner(resume=dict(epoch=1, iteration=6)).train_epoch() == reference[1][2:]


@pytest.mark.parametrize('batch_size', [1, 2, 3, 4])
def test_no_sample_is_lost_where_the_batch_size_changes(batch_size):
    reference = _samples(_runner())
    stopped = _runner()
    stopped.train_epoch(steps=2)
    saved = stopped.position
    assert saved == dict(samples=4, of=7)
    later = _runner(batch_size=batch_size, resume=dict(iteration=2, saved=saved))
    found = _samples(later)
    assert found == reference[4 // batch_size * batch_size :]
    assert later.position['samples'] == 0
    grown = _runner(resume=dict(iteration=2, saved=dict(saved, of=6)))
    assert _samples(grown) == reference


def test_data_sets_that_give_whole_batches():
    one, two = _runner(dataset=_Batched), _runner(dataset=_Batched)
    assert one.train_epoch() == two.train_epoch()
    plain = one.train_loop.dataloader.dataset
    assert [item[0] for item in plain.__getitems__([3, 4])] == [3, 4]


def test_an_endless_sampler_goes_on_where_it_is_put():
    def draw(count, begin=0):
        data = _Noise()
        sampler = InfiniteSampler(data, shuffle=True, seed=1)
        loader = DataLoader(data, batch_size=2, sampler=sampler)
        _Runner(loader, by_epoch=False, iteration=begin)
        if begin:
            sampler.skip(begin * 2)
        found = iter(loader)
        return [[tuple(map(float, column)) for column in next(found)] for _ in range(count)]

    assert draw(9)[5:] == draw(4, begin=5)
