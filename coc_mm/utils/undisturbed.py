"""Run a model in the middle of a training without changing it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random numbers as before, after."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == 'cuda'})
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        for module, _ in modes:
            module.training = False
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, mode in modes:
            module.training = mode
