"""See whether a checkpoint belongs to a model before anything runs."""

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of
from coc_mm.errors import UserError, print_rank0

__all__ = ['Comparison', 'build_model', 'check_pretrained', 'check_weights', 'is_local']

# Fewer common weights than this share, and a checkpoint to start from is another model's.
_MIN_SHARE = 0.5


def is_local(path: str) -> bool:
    """Tell a file of this machine from a URL or a name of a model zoo.

    Args:
        path (str): As given to ``load_from`` or ``init_cfg``.

    Returns:
        bool: True for a local path.
    """
    return re.match(r'^(\S+:)?\w[\w+.-]*://', path) is None


@dataclass
class Comparison:
    """How the keys and shapes of a checkpoint lie against those of a model.

    Attributes:
        common (int): Keys of both, of the same shape.
        missing (list[str]): Keys of the model alone.
        unexpected (list[str]): Keys of the checkpoint alone.
        mismatched (list[str]): Keys of both with their two shapes, as text.
    """

    common: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    @classmethod
    def of(cls, state_dict: Mapping, model_state: Mapping) -> 'Comparison':
        """Compare.

        Args:
            state_dict (Mapping[str, Tensor]): Of the checkpoint.
            model_state (Mapping[str, Tensor]): Of the model.

        Returns:
            Comparison: The difference; counters of batch norms may be missing.
        """
        shared = [key for key in model_state if key in state_dict]
        mismatched = [
            f'{key} is {_shape(state_dict[key])}, the model has {_shape(model_state[key])}'
            for key in shared
            if state_dict[key].shape != model_state[key].shape
        ]
        missing = [
            key
            for key in model_state
            if key not in state_dict and not key.endswith('num_batches_tracked')
        ]
        unexpected = [key for key in state_dict if key not in model_state]
        return cls(len(shared) - len(mismatched), missing, unexpected, mismatched)

    @property
    def exact(self) -> bool:
        """Whether every weight has its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def share(self) -> float:
        """Common keys over those of the smaller side, 0 to 1."""
        differing = len(self.mismatched)
        smaller = min(len(self.missing), len(self.unexpected)) + differing + self.common
        return self.common / max(1, smaller)

    def describe(self) -> str:
        """Say on one line what differs, with the first few keys.

        Returns:
            str: Counts and examples.
        """
        parts = [
            (self.mismatched, 'of another shape', '; '),
            (self.missing, 'missing', ', '),
            (self.unexpected, 'unexpected', ', '),
        ]
        told = [
            f'{len(keys)} {what} ({sep.join(keys[:3])}{", ..." if len(keys) > 3 else ""})'
            for keys, what, sep in parts
            if keys
        ]
        return f'{self.common} weights match; ' + ', '.join(told)


def _shape(tensor: torch.Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'a scalar'


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


def _compare(model: nn.Module, state_dict: dict) -> Comparison:
    """Compare, then let the model's own renaming and resizing have a say."""
    comparison = Comparison.of(state_dict, model.state_dict())
    if comparison.exact:
        return comparison
    try:
        keys = model.load_state_dict(dict(state_dict), strict=False)
    except RuntimeError:  # shapes differ
        return comparison
    missing = [key for key in keys.missing_keys if not key.endswith('num_batches_tracked')]
    common = len(model.state_dict()) - len(keys.missing_keys)
    return Comparison(common, missing, list(keys.unexpected_keys), [])


def check_weights(model: nn.Module, checkpoint: Mapping, path: str, strict: bool) -> None:
    """Refuse a checkpoint of another model.

    Args:
        model (nn.Module): Of the config; its weights may be overwritten.
        checkpoint (Mapping): From ``load_checkpoint_safely``.
        path (str): Of the checkpoint, for the message.
        strict (bool): Whether every weight must have its place. If not, half of the
            smaller side must, and what does not is named on stdout.

    Raises:
        UserError: With counts and the first few keys that differ.
    """
    comparison = _compare(model, state_dict_of(checkpoint, path))
    if comparison.exact:
        return
    difference = comparison.describe()
    if strict or comparison.share < _MIN_SHARE:
        raise UserError(
            f'checkpoint {path} is of another model than the config: {difference}.\n'
            'Name the checkpoint that was trained with this config, or the config it was '
            'trained with.'
        )
    print_rank0(f'load_from {path}: {difference}')


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


def check_pretrained(model: nn.Module, paths: list[str]) -> None:
    """Refuse starting weights (``init_cfg``) of another model or that are no weights.

    Args:
        model (nn.Module): Built from the config.
        paths (list[str]): From :func:`pretrained_files`.

    Raises:
        CheckpointError: A file is missing or cannot be used.
        UserError: A file holds another model's weights, or none under the prefix.
    """
    for path in paths:
        if not os.path.exists(_expanded(path)):
            raise UserError(
                f'the config starts from the checkpoint {path}, which does not exist.\nTrain or '
                'fetch it first (the head of the config file may say how), or start without: '
                '--cfg-options model.backbone.init_cfg=None'
            )
    loaded = {path: state_dict_of(load_checkpoint_safely(path), path) for path in set(paths)}
    for name, module in model.named_modules():
        entries = getattr(module, 'init_cfg', None)
        for entry in entries if isinstance(entries, (list, tuple)) else [entries]:
            if not isinstance(entry, dict) or entry.get('type') != 'Pretrained':
                continue
            start = entry.get('checkpoint')
            if start in loaded:
                _check_start(module, name, loaded[start], start, entry.get('prefix'))


def _check_start(
    module: nn.Module, name: str, weights: dict, path: str, prefix: str | None
) -> None:
    if prefix:
        start = prefix.rstrip('.') + '.'
        found = {key[len(start) :]: v for key, v in weights.items() if key.startswith(start)}
        if not found:
            tops = ', '.join(sorted({key.split('.')[0] for key in weights})[:5])
            raise UserError(
                f'checkpoint {path} has no weights under the prefix {start!r} of {name}.init_cfg '
                f'(it has {tops}); correct the prefix, or leave it out.'
            )
        weights = found
    comparison = _compare(module, weights)
    if comparison.share < _MIN_SHARE:
        raise UserError(
            f'checkpoint {path} is of another model than {name or "the model"} of the config: '
            f'{comparison.describe()}.\nName weights of the same architecture in init_cfg.'
        )
    if comparison.mismatched:
        print_rank0(f'init_cfg of {name}: {path}: {comparison.describe()}')
