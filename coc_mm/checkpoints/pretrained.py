"""Starting weights (``init_cfg``) of our backbone, read without running what is in the file."""

import re
from typing import Any

from mmengine.model import PretrainedInit, update_init_info
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from torch import nn

from coc_mm.checkpoints.load import load_checkpoint_safely, load_from_http_safely, state_dict_of
from coc_mm.checkpoints.official_names import is_official
from coc_mm.errors import CheckpointError
from coc_mm.registry import WEIGHT_INITIALIZERS

__all__ = ['SafePretrained', 'read_checkpoint']


def read_checkpoint(path: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint by path, URL, or a name that mmengine resolves.

    Args:
        path (str): A local file, ``http(s)://``, or any scheme of mmengine's
            ``CheckpointLoader``, which then reads it in its own way.
        map_location: As in :func:`torch.load`. Defaults to ``'cpu'``.

    Returns:
        dict: The checkpoint.

    Raises:
        CheckpointError: The file cannot be read or holds more than data.
    """
    if re.match(r'https?://', path):
        return load_from_http_safely(path, map_location)
    if re.match(r'[\w-]{2,}:', path):
        return CheckpointLoader.load_checkpoint(path, map_location)
    return load_checkpoint_safely(path, map_location)


@WEIGHT_INITIALIZERS.register_module()
class SafePretrained(PretrainedInit):
    """``Pretrained`` of mmengine for files of unknown origin and official weights.

    Args:
        checkpoint (str): See :func:`read_checkpoint`.
        prefix (str, optional): Of the names to load. The official classifiers have
            none: their names are understood with any. Defaults to None.
        map_location (str): Defaults to ``'cpu'``.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load.

        Args:
            module (nn.Module): The backbone.

        Raises:
            CheckpointError: The file cannot be read, or holds nothing for the module.
        """
        weights = state_dict_of(read_checkpoint(self.checkpoint, self.map_location))
        official = is_official(weights)
        prefix = (self.prefix or '').rstrip('.')
        start = f'{prefix}.' if prefix else ''
        found = {k[len(start) :]: v for k, v in weights.items() if k.startswith(start)}
        if not found and official:
            found = weights
        if not is_official(found) and not found.keys() & module.state_dict().keys():
            tops = ', '.join(sorted({key.split('.')[0] for key in weights})[:5])
            where = f'under the prefix {start!r}' if start else 'at its top'
            raise CheckpointError(
                f'checkpoint {self.checkpoint} has no weights of {type(module).__name__} {where} '
                f"(it has {tops}); correct the prefix of init_cfg, for most models 'backbone.'."
            )
        load_state_dict(module, found, strict=False, logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())
