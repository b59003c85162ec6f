import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
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


class _Runner:
    """What the hook uses of a runner, around an epoch- or iteration-based loop."""

    seed, epoch, iter = 5, 0, 0

    def __init__(self, loader, by_epoch):
        kind = EpochBasedTrainLoop if by_epoch else type('Loop', (), {})
        self.train_loop = object.__new__(kind)
        self.train_loop.dataloader = loader
        if by_epoch:
            self.train_loop._iter = 0
        self.logger = type('Log', (), dict(info=staticmethod(lambda text: None)))
        self.hook = StepSeedHook()
        self.hook.before_train(self)

    def passing(self, epoch=0, iteration=0):
        self.epoch = epoch
        self.train_loop.__dict__['_iter'] = self.iter = iteration
        self.hook.before_train_epoch(self)
        loader = self.train_loop.dataloader
        if hasattr(loader.sampler, 'set_epoch'):
            loader.sampler.set_epoch(epoch)
        return [[tuple(map(float, column)) for column in batch] for batch in loader]


def _runner(workers=0, dataset=_Noise, **options):
    data = dataset()
    sampler = DefaultSampler(data, shuffle=True, seed=1)
    loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers, **options)
    return _Runner(loader, by_epoch=True)


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
    reference = [_runner().passing(epoch) for epoch in range(3)]
    again = _runner(workers, **options)
    assert [again.passing(epoch) for epoch in range(3)] == reference
    assert reference[0] != reference[1]
    # Begun in the middle of an epoch: the rest of it, then the next.
    later = _runner(workers, **options)
    assert later.passing(1, 4 + 2) == reference[1][2:]
    assert later.passing(2, 8) == reference[2]


def test_data_sets_that_give_whole_batches():
    one, two = _runner(dataset=_Batched), _runner(dataset=_Batched)
    assert one.passing(1, 4) == two.passing(1, 4)
    assert one.passing(1, 4) != one.passing(0, 0)
    plain = one.train_loop.dataloader.dataset
    assert [item[0] for item in plain.__getitems__([3, 4])] == [3, 4]


def test_an_endless_sampler_goes_on_where_it_is_put():
    def draw(count, begin=0):
        data = _Noise()
        sampler = InfiniteSampler(data, shuffle=True, seed=1)
        loader = DataLoader(data, batch_size=2, sampler=sampler)
        runner = _Runner(loader, by_epoch=False)
        runner.iter = begin
        if begin:
            sampler.skip(begin * 2)
        found = iter(loader)
        return [[tuple(map(float, column)) for column in next(found)] for _ in range(count)]

    assert draw(9)[5:] == draw(4, begin=5)
