"""mmengine's ``BaseModule`` for a core that needs PyTorch alone."""

import copy
from typing import Any

from torch import nn


class LazyBaseModule(nn.Module):
    """Do what ``mmengine.model.BaseModule`` does, but import it only to initialise weights.

    That import takes a second, which who uses a backbone in code of their own need not wait for.
    """

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__()
        self._is_init = False
        self.init_cfg = copy.deepcopy(init_cfg)

    @property
    def is_init(self) -> bool:
        """Whether weights were initialised."""
        return self._is_init

    @is_init.setter
    def is_init(self, value: bool) -> None:
        self._is_init = value

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says."""
        _base().init_weights(self)

    def _dump_init_info(self) -> None:
        _base()._dump_init_info(self)


def _base() -> Any:
    from mmengine.model import BaseModule

    return BaseModule
