"""Warm-up as a share of a run."""

from typing import Any

from mmengine.optim import LinearLR

from coc_mm.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class WarmupLR(LinearLR):
    """``LinearLR`` over the first ``share`` of a run, however long it is.

    It needs ``convert_to_iter_based=True``; ``end`` is the run's length, which mmengine fills in.
    """

    @classmethod
    def build_iter_from_epoch(
        cls, *args: Any, share: float = 0.05, end: int, epoch_length: int, **kwargs: Any
    ) -> 'WarmupLR':
        """Build it once the length of an epoch is known; of a single step it would not rise."""
        if not 0 < share <= 1:
            raise ValueError(f'share of the warm-up must be above 0 and at most 1, got {share}')
        kwargs['by_epoch'] = False
        return cls(*args, end=max(2, round(share * end * epoch_length)), **kwargs)
