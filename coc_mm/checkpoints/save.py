"""Writing checkpoints, ``.pth`` or ``.safetensors``."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from coc_mm.errors import CheckpointError
from coc_mm.utils.atomic_io import atomic_write

_SUFFIXES = ('.pth', '.safetensors')


def check_target(path: str | os.PathLike, force: bool = False) -> Path:
    """Refuse a file that cannot or, without ``force``, should not be written."""
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise CheckpointError(f'{path} is a folder; name the file to write in it.')
    if path.suffix not in _SUFFIXES:
        raise CheckpointError(
            f'{path} ends in {path.suffix or "nothing"}; name a file with .pth or .safetensors.'
        )
    if path.exists() and not force:
        raise CheckpointError(f'{path} exists; name another file, or replace it with --force.')
    return path


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all; ``.safetensors`` has ``meta`` as JSON in its header.

    Folders are made; ``path`` is from :func:`check_target`.
    """
    try:
        with atomic_write(path) as temporary:
            if path.suffix == '.safetensors':
                from safetensors.torch import save_file

                weights = {k: v.contiguous() for k, v in checkpoint['state_dict'].items()}
                header = {'format': 'pt', 'meta': json.dumps(checkpoint.get('meta') or {})}
                save_file(weights, temporary, header)
            else:
                torch.save(checkpoint, temporary)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be written ({error.strerror}).') from None
