"""Starting weights: ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)``."""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.model import PretrainedInit, update_init_info
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from coc_mm.checkpoints.load import compare, load_checkpoint_safely, state_dict_of
from coc_mm.errors import CheckpointError, UserError, print_rank0
from coc_mm.models.backbones.context_cluster import ContextCluster
from coc_mm.registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class SafePretrained(PretrainedInit):
    """The name that configs may give to ``Pretrained``, which reads safely by itself."""


def _select(module: nn.Module, weights: Mapping, path: str, prefix: str | None, name: str) -> dict:
    """Take a module's weights out of a checkpoint; our backbone's may be at the top, too."""
    start = f'{prefix.rstrip(".")}.' if prefix else ''
    is_ours = isinstance(module, ContextCluster)
    for other in (start, *(('backbone.', '') if is_ours and start in ('', 'backbone.') else ())):
        found: Any = OrderedDict(
            (key[len(other) :], v) for key, v in weights.items() if key.startswith(other)
        )
        metadata = getattr(weights, '_metadata', {}).items()
        found._metadata = {k[len(other) :]: v for k, v in metadata if f'{k}.'.startswith(other)}
        if found and (not is_ours or found.keys() & module.state_dict().keys()):
            return found
    where = f'under the prefix {start!r}' if start else 'at the top'
    tops = ', '.join(sorted({key.split('.')[0] for key in weights})[:5])
    raise CheckpointError(
        f'checkpoint {path} has no weights {where} of {name}.init_cfg for '
        f'{type(module).__name__} (it has {tops}); correct the prefix, or leave it out.'
    )


def load_pretrained(init: PretrainedInit, module: nn.Module, original: Callable) -> None:
    """Load starting weights of our backbone; those of other modules by mmengine's ``original``."""
    if not isinstance(module, ContextCluster):
        original(init, module)
        return
    path = init.checkpoint
    weights = state_dict_of(load_checkpoint_safely(path, init.map_location), path)
    found = _select(module, weights, path, init.prefix, 'backbone')
    comparison = compare(module, found)
    # A classifier has one norm of its output, a dense model four.
    missing = [key for key in comparison.missing if not key.startswith('norm')]
    if missing or comparison.mismatched:
        comparison.missing = missing
        print_rank0(f'init_cfg: {path}: {comparison.describe()}')
    load_state_dict(module, found, strict=False, logger='current')
    if hasattr(module, '_params_init_info'):
        update_init_info(module, init_info=init._get_init_info())


def check_pretrained(model: nn.Module, paths: list[str]) -> None:
    """Refuse starting weights (``init_cfg``) of another model or that are no weights.

    ``paths`` are the local files that the config names; the model's weights may be overwritten.
    """
    for path in paths:
        if not os.path.exists(os.path.expanduser(path)):
            raise UserError(
                f'the config starts from the checkpoint {path}, which does not exist.\nTrain or '
                'fetch it first (the head of the config file may say how), or start without: '
                '--cfg-options model.backbone.init_cfg=None'
            )
    loaded = {p: state_dict_of(load_checkpoint_safely(p, hold=True), p) for p in set(paths)}
    for name, module in model.named_modules():
        entries = getattr(module, 'init_cfg', None)
        for entry in entries if isinstance(entries, (list, tuple)) else [entries]:
            if not isinstance(entry, dict) or entry.get('type') != 'Pretrained':
                continue
            if (start := entry.get('checkpoint')) not in loaded:
                continue
            found = _select(module, loaded[start], start, entry.get('prefix'), name)
            comparison = compare(module, found)
            if comparison.share < 0.5:
                raise UserError(
                    f'checkpoint {start} is of another model than {name or "the model"} of the '
                    f'config: {comparison.describe()}.\nName weights of the same architecture in '
                    'init_cfg.'
                )
            if comparison.mismatched and not isinstance(module, ContextCluster):
                print_rank0(f'init_cfg of {name}: {start}: {comparison.describe()}')
