"""Values of a config that mmengine refuses late, with a traceback: refused before the start."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from coc_mm.errors import UserError

__all__ = ['check_values']

_WHOLE = 'a whole number of at least 1'
_LOADER = ['train_dataloader', 'val_dataloader', 'test_dataloader']
# What a value must be, by its place in the config.
_RULES = {
    'train_cfg.max_epochs': _WHOLE,
    'train_cfg.max_iters': _WHOLE,
    'train_cfg.val_interval': _WHOLE,
    'default_hooks.logger.interval': _WHOLE,
    'default_hooks.checkpoint.interval': 'a whole number of at least 1, or -1 for never',
    'optim_wrapper.accumulative_counts': _WHOLE,
    'optim_wrapper.optimizer.lr': 'a number of at least 0',
    'optim_wrapper.optimizer.weight_decay': 'a number of at least 0',
    'log_processor.window_size': _WHOLE,
    **{f'{loader}.batch_size': _WHOLE for loader in _LOADER},
    **{f'{loader}.num_workers': 'a whole number of at least 0' for loader in _LOADER},
}


def _fits(value: Any, rule: str) -> bool:
    kinds = int if 'whole' in rule else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return value >= (0 if rule.endswith('0') else 1) or ('-1' in rule and value == -1)


def _problems(config: Config) -> Iterator[str]:
    for path, rule in _RULES.items():
        node: Any = config
        for step in path.split('.'):
            node = node.get(step) if isinstance(node, (dict, Config)) else None
        if node is not None and not _fits(node, rule):
            yield f'{path} is {node!r}; {rule} is needed.'
    train_cfg = config.get('train_cfg') or {}
    if train_cfg.get('by_epoch') is False and train_cfg.get('max_epochs') is not None:
        yield 'train_cfg has by_epoch=False and max_epochs; give max_iters, or no by_epoch.'


def check_values(config: Config) -> None:
    """Raise a :class:`UserError` that names the first value that cannot be used."""
    for problem in _problems(config):
        raise UserError(f'the config does not fit: {problem}')
