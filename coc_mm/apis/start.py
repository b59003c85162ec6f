"""What a run starts from: its model and the checkpoints that the config names."""

import os
from copy import deepcopy

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from coc_mm.checkpoints.load import Comparison, check_weights, is_local
from coc_mm.checkpoints.pretrained import check_pretrained
from coc_mm.errors import print_rank0

__all__ = ['Comparison', 'build_model', 'check_pretrained', 'check_weights', 'is_local']


def build_model(config: Config) -> nn.Module:
    """Build the model of a config on the CPU, as a Runner would.

    Args:
        config (Config): With ``model`` and ``default_scope``; left unchanged.

    Returns:
        nn.Module: The model with its random weights.
    """
    model = deepcopy(config.model)
    if config.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', deepcopy(config.data_preprocessor))
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.random.fork_rng([]):
        return MODELS.build(model)


def _pretrained_entries(node):
    """Yield the ``init_cfg`` entries of a model config that load a file."""
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from _pretrained_entries(value)
    elif isinstance(node, dict):
        if node.get('type') == 'Pretrained' and isinstance(node.get('checkpoint'), str):
            yield node
        for value in node.values():
            yield from _pretrained_entries(value)


def pretrained_files(config: Config) -> list[str]:
    """List the local checkpoints that a model config starts from.

    Args:
        config (Config): With ``model``.

    Returns:
        list[str]: Paths from ``init_cfg=dict(type='Pretrained', checkpoint=...)``.
    """
    entries = _pretrained_entries(config.model)
    return [entry['checkpoint'] for entry in entries if is_local(entry['checkpoint'])]


def drop_missing_pretrained(config: Config) -> None:
    """Forget starting weights that are gone, where a run resumes and has its own.

    Args:
        config (Config): Changed in place.
    """
    gone = {path for path in pretrained_files(config) if not os.path.isfile(_expanded(path))}
    if gone:
        print_rank0(
            f'starting weights {", ".join(sorted(gone))} are gone; a resumed run needs none.'
        )
        _drop_pretrained(config.model, gone)


def _expanded(path: str) -> str:
    return os.path.expanduser(path)


def _drop_pretrained(node, paths: set[str]) -> None:
    """Remove the ``init_cfg`` entries with these files from a nested config."""
    if isinstance(node, (list, tuple)):
        for value in node:
            _drop_pretrained(value, paths)
    elif isinstance(node, dict):
        init_cfg = node.get('init_cfg')
        if isinstance(init_cfg, dict) and init_cfg.get('checkpoint') in paths:
            node['init_cfg'] = None
        elif isinstance(init_cfg, (list, tuple)):
            node['init_cfg'] = [x for x in init_cfg if x.get('checkpoint') not in paths]
        for value in node.values():
            _drop_pretrained(value, paths)
