"""Mixed precision where mmengine has none: on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from coc_mm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Run the forward pass in bfloat16 on the CPU, which mmengine's ``AmpOptimWrapper`` refuses."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run a training step under CPU autocast."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of any optimizer wrapper; that of a loss scaler is left out."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != 'loss_scaler'})
