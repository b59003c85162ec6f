"""Mixed precision where mmengine has none: on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

__all__ = ['CPU_AMP_TYPE', 'CpuAmpOptimWrapper', 'cpu_amp_config']


class CpuAmpOptimWrapper(OptimWrapper):
    """Optimizer wrapper that runs the forward pass in bfloat16 on the CPU.

    mmengine's ``AmpOptimWrapper`` asserts that there is an accelerator. bfloat16 has
    the range of float32, so losses need no scaling.

    Args:
        **kwargs: As for :class:`mmengine.optim.OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run a training step under CPU autocast.

        Args:
            model (nn.Module): The model in training.
        """
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of an optimizer, also one that was trained with loss scaling.

        Args:
            state_dict (dict): State of any single optimizer wrapper.
        """
        super().load_state_dict({k: v for k, v in state_dict.items() if k != 'loss_scaler'})


# mmengine finds a class by its full name, so a dumped config needs no import.
CPU_AMP_TYPE = f'{CpuAmpOptimWrapper.__module__}.{CpuAmpOptimWrapper.__qualname__}'


def cpu_amp_config(optim_wrapper: dict) -> None:
    """Turn the config of an ``AmpOptimWrapper`` into one for the CPU, in place.

    Args:
        optim_wrapper (dict): The config; its loss scale, dtype and FSDP entries go.
    """
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        optim_wrapper.pop(key, None)
    optim_wrapper['type'] = CPU_AMP_TYPE
