"""The models of this package by name, from the metafiles beside the configs."""

import fnmatch
import functools
import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from coc_mm.apis.syntax import PARSING
from coc_mm.errors import UserError

if TYPE_CHECKING:  # a list of names must not cost the import of torch
    import torch
    from mmengine.config import Config
    from torch import nn

__all__ = ['ModelEntry', 'config_of', 'entries', 'get_model', 'list_models', 'zoo_root']

#: Folder of a family of configs -> the default scope of its library.
SCOPES = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg'}
_OFFICIAL = 'https://github.com/ma-xu/Context-Cluster'


class ModelEntry(dict):
    """What a metafile says of a model, under its own keys (``Name``, ``Config``, ...)."""

    @property
    def name(self) -> str:
        """Name of the model and of its config file."""
        return self['Name']

    @property
    def config(self) -> str:
        """Absolute path of the config file."""
        return str(zoo_root() / self['Config'])

    @property
    def task(self) -> str:
        """'classification', 'detection' or 'segmentation'."""
        return Path(self['Config']).parent.name

    @property
    def scope(self) -> str:
        """The library that owns head and pipeline: 'mmpretrain', 'mmdet' or 'mmseg'."""
        return SCOPES[self.task]

    @property
    def weights(self) -> str | None:
        """Published weights, or ``checkpoints/NAME.pth`` where that exists, else None.

        The latter is where the configs expect converted weights.
        """
        local = Path('checkpoints') / f'{self.name}.pth'
        return self.get('Weights') or (str(local) if local.is_file() else None)


def zoo_root() -> Path:
    """Find the folder with ``configs`` and ``model-index.yml``.

    Returns:
        Path: ``coc_mm/.mim`` of an installed package, else the checkout.

    Raises:
        UserError: The installation has neither.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package / '.mim', package.parent):
        if (root / 'model-index.yml').is_file() and (root / 'configs').is_dir():
            return root
    raise UserError(
        f'no configs belong to coc_mm in {package}; install the package anew (pip install .), '
        'which packs them, or work in a checkout.'
    )


@functools.cache
def entries() -> dict[str, ModelEntry]:
    """Read the metafiles.

    Returns:
        dict[str, ModelEntry]: By name, in the order of the files.
    """
    root = zoo_root()
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    found = {}
    for path in index['Import']:
        for model in yaml.safe_load((root / path).read_text())['Models']:
            found[model['Name']] = ModelEntry(model)
    return found


def list_models(pattern: str | None = None, task: str | None = None) -> list[str]:
    """List the models that can be had by name.

    Args:
        pattern (str, optional): With ``*`` and ``?``; matches a whole name or the
            beginning of one, in any case. All models if None.
        task (str, optional): 'classification', 'detection' or 'segmentation'.

    Returns:
        list[str]: Sorted.

    Raises:
        ValueError: There is no such task.

    Example:
        >>> from coc_mm.apis import list_models
        >>> list_models('coc-tiny_')
        ['coc-tiny_8xb128_in1k']
    """
    if task is not None and task not in SCOPES:
        raise ValueError(f'unknown task {task!r}: choose one of {", ".join(SCOPES)}')
    names = [name for name, entry in entries().items() if task in (None, entry.task)]
    if pattern is not None:
        wanted = pattern.lower() + '*'
        names = [name for name in names if fnmatch.fnmatchcase(name.lower(), wanted)]
    return sorted(names)


def find_entry(name: str) -> ModelEntry:
    """Look a model up.

    Args:
        name (str): In any case.

    Returns:
        ModelEntry: What its metafile says.

    Raises:
        UserError: There is no such model; names that come close are told.
    """
    lowered = {known.lower(): entry for known, entry in entries().items()}
    entry = lowered.get(name.lower())
    if entry is None:
        import difflib

        close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
        hint = f'did you mean {" or ".join(close)}? ' if close else ''
        raise UserError(f'no model {name!r}: {hint}coc_mm.apis.list_models() lists all names.')
    return entry


def config_of(name: str) -> 'Config':
    """Load the config of a model.

    Args:
        name (str): Of the model.

    Returns:
        Config: A fresh one.

    Raises:
        UserError: There is no such model.
    """
    from mmengine.config import Config

    with PARSING:
        return Config.fromfile(find_entry(name).config)


def apply_record(config: 'Config', checkpoint: dict, given: Collection[str] = ()) -> None:
    """Give a config the mixer that converted weights were trained with.

    Args:
        config (Config): Changed in place: denominator, proposals and folds of its backbone.
        checkpoint (dict): Its ``meta`` may hold the record of a conversion.
        given (Collection[str]): Arguments of the backbone to leave alone.
    """
    record = (checkpoint.get('meta') or {}).get('coc_mm') or {}
    for key, value in record.get('backbone', {}).items():
        if key in given or config.model.backbone.get(key, _DEFAULTS.get(key)) == value:
            continue
        config.model.backbone[key] = value


_DEFAULTS = {'denominator': 'similarity'}


def _no_weights(entry: ModelEntry) -> str:
    target = f'checkpoints/{entry.name}.pth'
    return (
        f'no weights of {entry.name} are hosted. Get the official file from {_OFFICIAL} and run\n'
        f'python tools/model_converters/official_to_coc_mm.py FILE {target}\n'
        f'then pretrained=True finds it there, and pretrained=PATH anywhere else.'
    )


def get_model(
    name: str,
    pretrained: bool | str | os.PathLike = False,
    device: 'str | torch.device' = 'cpu',
    **overrides: Any,
) -> 'nn.Module':
    """Build a model by name, ready for the inference functions of its library.

    Args:
        name (str): One of :func:`list_models`.
        pretrained (bool | str): Path or URL of a checkpoint of this model, converted or
            trained; True for ``checkpoints/NAME.pth``, where the configs expect it; False
            for random weights. The denominator and the centers that the checkpoint
            records go before those of the config. Defaults to False.
        device (str | torch.device): Defaults to ``'cpu'``.
        **overrides: Entries of the model's config, e.g. ``backbone=dict(backend='fused')``.

    Returns:
        nn.Module: In evaluation mode, with its config and class names.

    Raises:
        UserError: There is no such model or no weights, or they are of another model; its library
            is missing.
        CheckpointError: The checkpoint cannot be read.

    Example:
        >>> from coc_mm.apis import get_model
        >>> model = get_model('coc-tiny_8xb128_in1k')
        >>> sum(p.numel() for p in model.parameters())
        5570584
    """
    from coc_mm.apis.config import check_scope
    from coc_mm.apis.start import check_weights
    from coc_mm.apis.tasks import TASKS
    from coc_mm.checkpoints.load import state_dict_of
    from coc_mm.checkpoints.official_names import is_official
    from coc_mm.checkpoints.pretrained import read_checkpoint

    entry = find_entry(name)
    check_scope(entry.scope, entry.config)
    path = entry.weights if pretrained is True else pretrained and os.fspath(pretrained)
    if pretrained is True and path is None:
        raise UserError(_no_weights(entry))
    config, checkpoint, weights = config_of(name), {}, {}
    if path:
        checkpoint = read_checkpoint(path)
        weights = state_dict_of(checkpoint, path)
        if is_official(weights):
            raise UserError(
                f'{path} is an official file; convert it first:\n'
                f'python tools/model_converters/official_to_coc_mm.py {path} '
                f'checkpoints/{entry.name}.pth'
            )
        apply_record(config, checkpoint, overrides.get('backbone', ()))
    config.merge_from_dict({'model': overrides})
    library = TASKS[entry.scope]
    with warnings.catch_warnings():  # "checkpoint is None": the weights follow below
        warnings.filterwarnings('ignore', message='.*(checkpoint is None|palette)')
        model = library.build(config)
    if path:
        check_weights(model, checkpoint, path, strict=True)
        model.load_state_dict(weights, strict=False)
    library.set_classes(model, checkpoint.get('meta') or {}, config)
    return model.to(device).eval()
