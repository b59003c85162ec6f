import random

import numpy as np
import pytest
import torch

from coc_mm.utils.undisturbed import undisturbed


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def use(model):
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        draw()
        raise KeyError


def test_modes_and_random_numbers_are_as_before_also_after_an_error():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2).eval())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with pytest.raises(KeyError):
        use(model)
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()
    assert draw() == expected
