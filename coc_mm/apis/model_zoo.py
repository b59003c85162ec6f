"""The models of this package by name, from the metafiles beside the configs."""

import difflib
import fnmatch
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from coc_mm.apis.config import read_config
from coc_mm.compat.inferencers import add_model_names
from coc_mm.errors import UserError
from coc_mm.utils.package_files import zoo_root

if TYPE_CHECKING:  # a list of names must not cost the import of torch
    import torch
    from mmengine.config import Config
    from torch import nn

#: Folder of a family of configs -> the default scope of its library.
SCOPES = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg'}


class ModelEntry(dict):
    """What a metafile says of a model, under its own keys (``Name``, ``Config``, ...)."""

    @property
    def name(self) -> str:
        """Of the model and of its config file."""
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
    def sources(self) -> dict[str, dict[str, Any]]:
        """What is published, by the name of the source; see the heads of the metafiles."""
        return self.get('Sources') or {}

    @property
    def weights(self) -> str | None:
        """Published weights, or ``checkpoints/NAME.pth`` where that exists, else None."""
        local = Path('checkpoints') / f'{self.name}.pth'
        return self.get('Weights') or (str(local) if local.is_file() else None)


@functools.cache
def entries() -> dict[str, ModelEntry]:
    """Read the metafiles; entries by name, in the order of the files."""
    return _read(yaml.safe_load((zoo_root() / 'model-index.yml').read_text())['Import'])


def _read(metafiles: Iterable[str]) -> dict[str, ModelEntry]:
    texts = [(zoo_root() / path).read_text() for path in metafiles]
    models = [model for text in texts for model in yaml.safe_load(text)['Models']]
    return {model['Name']: ModelEntry(model) for model in models}


def find_models(patterns: Iterable[str], metafiles: Iterable[str] = ()) -> list[ModelEntry]:
    """Find the models that weights are published for, by name, with ``*`` and ``?``, or 'all'.

    ``metafiles`` are more of them, relative to the root, passed over where they are missing.
    """
    known = entries() | _read(path for path in metafiles if (zoo_root() / path).is_file())
    found = {}
    for pattern in patterns:
        wanted = '*' if pattern == 'all' else pattern.lower()
        names = [name for name in known if fnmatch.fnmatchcase(name.lower(), wanted)]
        if not names:
            find_entry(pattern)  # tells names that come close
        found.update({name: known[name] for name in names if known[name].sources})
    return list(found.values())


def list_models(pattern: str | None = None, task: str | None = None) -> list[str]:
    """List the models that can be had by name, sorted.

    Args:
        pattern (str, optional): With ``*`` and ``?``; matches a name or its beginning, in any case.
        task (str, optional): 'classification', 'detection' or 'segmentation'.

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
    """Look a model up, in any case; a :class:`UserError` tells names that come close."""
    lowered = {known.lower(): entry for known, entry in entries().items()}
    entry = lowered.get(name.lower())
    if entry is None:
        close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
        hint = f'did you mean {" or ".join(close)}? ' if close else ''
        raise UserError(f'no model {name!r}: {hint}coc_mm.apis.list_models() lists all names.')
    return entry


def find_weights(name: str, source: str | None = None) -> str:
    """Find the weights of a model: what ``pretrained=True`` takes, or those of a source."""
    entry = find_entry(name)
    fetched = f'coc_mm://{entry.name}/{source or ""}'  # see coc_mm.apis.published
    return fetched if source or entry.weights is None else entry.weights


def config_of(name: str) -> 'Config':
    """Load the config of a model afresh."""
    return read_config(find_entry(name).config)


def get_model(
    name: str,
    pretrained: bool | str | os.PathLike = False,
    device: 'str | torch.device' = 'cpu',
    **overrides: Any,
) -> 'nn.Module':
    """Build a model by name, ready for the inference functions of its library.

    Args:
        name (str): One of :func:`list_models`.
        pretrained (bool | str): Path or URL of a checkpoint of this model, official,
            converted or trained; True for ``checkpoints/NAME.pth``, which published weights are
            fetched to where it is missing; a source of them, e.g. 'openmixup'; False for random
            weights.
        device (str | torch.device): See :func:`coc_mm.apis.infer.load_model`.
        **overrides: Entries of the model's config, e.g. ``backbone=dict(backend='matmul')``.

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
    from coc_mm.apis.infer import load_model

    entry = find_entry(name)
    check_scope(entry.scope, entry.config)
    path = os.fspath(pretrained) if pretrained and pretrained is not True else None
    if pretrained is True or path in entry.sources:
        path = find_weights(name, path)
    config = config_of(name)
    config.merge_from_dict({'model': overrides})
    return load_model(config, path, device, keep=overrides.get('backbone', ()))


def register_model_zoo(module: ModuleType) -> None:
    """Make the names of our models known to the libraries' own inferencers.

    Args:
        module (ModuleType): ``mmpretrain.apis.model``, whose hub takes our metafile, or
            ``mmengine.infer.infer``, the base of ``DetInferencer`` and ``MMSegInferencer``.
    """
    if module.__name__ == 'mmengine.infer.infer':
        add_model_names(module, _find, lambda scope: [entry.name for entry in _own(scope)])
        return
    root, own = zoo_root(), _own('mmpretrain')
    if not {x.name.lower() for x in own} & module.ModelHub._models_dict.keys():
        module.ModelHub.register_model_index(
            root / 'configs' / 'classification' / 'metafile.yml', config_prefix=root
        )
    for entry in own:
        if entry.sources:  # fetched when they are asked for
            module.ModelHub._models_dict[entry.name.lower()].weights = f'coc_mm://{entry.name}'


def _own(scope: str | None) -> list[ModelEntry]:
    """List the entries of one library, or of all for None."""
    return [entry for entry in entries().values() if scope in (None, entry.scope)]


def _find(scope: str | None, name: str) -> tuple | None:
    entry = next((x for x in _own(scope) if x.name.lower() == name.lower()), None)
    if entry is None:
        return None
    return config_of(entry.name), find_weights(entry.name) if entry.sources else entry.weights
