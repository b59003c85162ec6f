import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner import BaseLoop

from coc_mm.engine import TrialHook


class Loop(BaseLoop):
    def run(self):
        raise NotImplementedError


def trial(predict, process):
    loader = SimpleNamespace(dataset=[1, 2], collate_fn=lambda samples: [samples])
    loop = Loop.__new__(Loop)
    loop.dataloader = loader
    loop.evaluator = SimpleNamespace(process=process, metrics=[SimpleNamespace(results=[3])])
    model = torch.nn.Dropout()
    model.val_step = lambda batch: (*predict(batch), model.training)
    TrialHook().before_train(SimpleNamespace(val_loop=loop, model=model))
    assert model.training
    return loop.evaluator.metrics[0].results


def test_one_image_is_predicted_and_leaves_nothing():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seen = []

    def predict(batch):
        seen.append(batch)
        return draw()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    results = trial(predict, lambda data_samples, data_batch: seen.append(data_samples))
    assert seen == [[[1]], (*expected, False)]
    assert results == []
    assert draw() == expected


def test_what_fails_is_raised_and_no_validation_is_none():
    def fail(**_):
        raise KeyError('gt')

    with pytest.raises(KeyError, match='gt'):
        trial(lambda batch: (), fail)
    TrialHook().before_train(SimpleNamespace(val_loop=None))
