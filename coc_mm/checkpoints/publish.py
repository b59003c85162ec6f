"""Publishing: the weights of a training checkpoint and what prediction needs beside them."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from coc_mm.checkpoints.safe_pickle import check_tensors, read_file
from coc_mm.checkpoints.save import check_target, save_checkpoint
from coc_mm.errors import CheckpointError

# Of the metadata, what prediction needs and what says where the weights are from.
_KEPT = (
    *('cfg', 'config', 'dataset_meta', 'CLASSES', 'PALETTE', 'coc_mm', 'epoch', 'iter'),
    *('experiment_name', 'mmengine_version', 'mmcv_version', 'mmdet_version', 'mmseg_version'),
    'mmpretrain_version',
)


def _strip(checkpoint: Mapping, path: str, ema: bool = True) -> dict[str, Any]:
    """Keep the weights and the metadata for prediction; drop the state of the training."""
    # mmengine saves averaged weights as state_dict and those of training as ema_state_dict, timm
    # the other way round.
    weights = checkpoint.get('state_dict')
    if isinstance(checkpoint.get('state_dict_ema'), Mapping) and ema:
        weights = checkpoint['state_dict_ema']
    elif not ema:
        weights = checkpoint.get('ema_state_dict', weights)
        if 'ema_state_dict' not in checkpoint and 'state_dict_ema' not in checkpoint:
            raise CheckpointError(f'{path} is of a run without EMA; leave out --no-ema.')
    if weights is None:
        weights = {} if isinstance(checkpoint.get('optimizer'), Mapping) else checkpoint
    state_dict: Any = OrderedDict(
        (re.sub(r'^(module\.)+', '', name), value.detach())
        for name, value in weights.items()
        # "steps" counts the averaging of mmengine's ema_state_dict.
        if isinstance(value, torch.Tensor) and name != 'steps'
    )
    if not state_dict:
        raise CheckpointError(f'{path} holds no weights to publish.')
    check_tensors(state_dict, path)
    for name, value in state_dict.items():
        state_dict[name] = value.cpu().clone()
    if hasattr(weights, '_metadata'):
        state_dict._metadata = weights._metadata
    meta = checkpoint.get('meta') or {}
    return dict(meta={k: meta[k] for k in _KEPT if k in meta}, state_dict=state_dict)


def publish(source: str, target: str, ema: bool = True, force: bool = False) -> Path:
    """Strip a checkpoint and write it under a name with the hash of its weights.

    ``target`` is ``DIR/NAME.pth`` or ``.safetensors``, written as ``DIR/NAME-<8 hex digits>.pth``;
    ``ema`` takes the averaged weights of a run with EMA.
    """
    wanted = check_target(target, force=True)
    checkpoint = _strip(read_file(source), source, ema)
    digest = hashlib.sha256()
    for name, value in sorted(checkpoint['state_dict'].items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        if value.numel():
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    stem = re.sub(r'-[0-9a-f]{8}$', '', wanted.stem)  # publishing what was published
    name = f'{stem}-{digest.hexdigest()[:8]}{wanted.suffix}'
    path = check_target(wanted.with_name(name), force)
    save_checkpoint(checkpoint, path)
    return path
