"""Values of a config that mmengine refuses late, with a traceback: refused before the start."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from coc_mm.datasets.custom_config import dicts
from coc_mm.errors import UserError

_WHOLE = 'a whole number of at least 1'
_NUMBER = 'a number of at least 0'
_LOADERS = ['train_dataloader', 'val_dataloader', 'test_dataloader']
# What a value must be, by its place in the config.
_RULES = {
    'train_cfg.max_epochs': _WHOLE,
    'train_cfg.max_iters': _WHOLE,
    'train_cfg.val_interval': _WHOLE,
    'train_cfg.val_begin': 'a whole number of at least 0',
    'default_hooks.logger.interval': _WHOLE,
    'default_hooks.checkpoint.interval': f'{_WHOLE}, or -1 for never',
    'default_hooks.checkpoint.max_keep_ckpts': f'{_WHOLE}, or -1 for all',
    'optim_wrapper.accumulative_counts': _WHOLE,
    'optim_wrapper.optimizer.lr': _NUMBER,
    'optim_wrapper.optimizer.weight_decay': _NUMBER,
    'optim_wrapper.clip_grad.max_norm': _NUMBER,
    'log_processor.window_size': _WHOLE,
    'auto_scale_lr.base_batch_size': _WHOLE,
    'randomness.seed': 'a whole number of at least 0',
    'load_from': 'the path of a checkpoint',
    **{f'{loader}.batch_size': _WHOLE for loader in _LOADERS},
    **{f'{loader}.prefetch_factor': _WHOLE for loader in _LOADERS},
    **{f'{loader}.num_workers': 'a whole number of at least 0' for loader in _LOADERS},
}
# Of each schedule.
_SCHEDULE = {
    'T_max': _WHOLE,
    'step_size': _WHOLE,
    'milestones': 'a list of whole numbers',
    'start_factor': 'a number above 0',
}
# Wherever they stand.
_FLAGS = (
    'reduce_zero_label', 'test_mode', 'shuffle', 'drop_last', 'pin_memory', 'persistent_workers',
    'by_epoch', 'align_corners', 'with_bbox', 'with_mask',
)  # fmt: skip
_CLIP = ('max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value', 'type')
_CHOICES = {
    'launcher': ('none', 'pytorch', 'slurm', 'mpi'),
    'resume': (True, False, 'auto'),
    'log_level': ('CRITICAL', 'ERROR', 'WARNING', 'INFO', 'DEBUG', 'NOTSET'),
}


def _fits(value: Any, rule: str) -> bool:
    if 'path' in rule:
        return isinstance(value, str)
    if 'list' in rule:
        return isinstance(value, (list, tuple)) and all(type(x) is int for x in value)
    kinds = int if 'whole' in rule else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    if 'above 0' in rule:
        return value > 0
    least = 0 if 'least 0' in rule else 1
    return least <= value < 2**32 or ('-1' in rule and value == -1)


def _problems(config: Config) -> Iterator[str]:
    for path, rule in _RULES.items():
        node: Any = config
        for step in path.split('.'):
            node = node.get(step) if isinstance(node, (dict, Config)) else None
        if node is not None and not _fits(node, rule):
            yield f'{path} is {node!r}; {rule} is needed.'
    for schedule in dicts(config.get('param_scheduler')):
        for key, rule in _SCHEDULE.items():
            if schedule.get(key) is not None and not _fits(schedule[key], rule):
                yield f'param_scheduler: {key} is {schedule[key]!r}; {rule} is needed.'
    for node in dicts([config.get(key) for key in config]):
        for key in _FLAGS:
            if isinstance(node.get(key), str):
                yield f'{key} is {node[key]!r}; True or False is needed.'
    train_cfg = config.get('train_cfg') or {}
    if train_cfg.get('by_epoch') is False and train_cfg.get('max_epochs') is not None:
        yield 'train_cfg has by_epoch=False and max_epochs; give max_iters, or no by_epoch.'
    if 'by_epoch' in train_cfg and 'type' in train_cfg:
        yield 'train_cfg has by_epoch and type; leave one of them out.'
    clip = (config.get('optim_wrapper') or {}).get('clip_grad')
    for key in clip if isinstance(clip, dict) else ():
        if key not in _CLIP:
            yield f'optim_wrapper.clip_grad.{key} is not known; known are {", ".join(_CLIP)}.'
    for key, choices in _CHOICES.items():
        value = config.get(key)
        if not (value is None or value in choices or (key == 'log_level' and type(value) is int)):
            yield f'{key} is {value!r}; known are {", ".join(map(str, choices))}.'
    for name in _LOADERS:
        for key in ('dataset', 'batch_size'):
            loader = config.get(name) or {}
            if loader.get(key, True) is None and not loader.get('batch_sampler'):
                yield f'{name}.{key} is None; it is needed.'
        for dataset in dicts(loader.get('dataset')):
            if 'pipeline' in dataset and not dataset['pipeline']:
                yield f'{name}: the pipeline of {dataset.get("type")} is empty.'


def check_values(config: Config) -> None:
    """Raise a :class:`UserError` that names the first value that cannot be used."""
    for problem in _problems(config):
        raise UserError(f'the config does not fit: {problem}')
