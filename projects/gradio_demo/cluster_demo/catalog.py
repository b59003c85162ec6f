"""Which models there are to choose from, and how each is loaded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from coc_mm.apis import get_model, list_models
from coc_mm.apis.convert import convert_checkpoint
from coc_mm.apis.infer import load_model
from coc_mm.checkpoints.load import load_checkpoint_safely
from coc_mm.errors import UserError

from .config_text import parse_config, read_config

__all__ = ['TASK_NAMES', 'ModelSource', 'find_models', 'load_source']

#: Default scope -> what its models do.
TASK_NAMES = {'mmpretrain': 'classification', 'mmdet': 'detection', 'mmseg': 'segmentation'}
QUICKSTART = ('classification', 'detection', 'segmentation')
_SUFFIXES = ('.pth', '.pth.tar', '.safetensors')
_MOST = 200  # checkpoints of a folder
_DEPTH = 4  # of folders inside the folder


@dataclass(frozen=True)
class ModelSource:
    """Something to choose.

    Attributes:
        label: As it is shown; unique.
        path: The checkpoint; None for random weights.
        config: The dumped config beside it, if there is one.
        name: Name in the model zoo, if it is one of its models.
    """

    label: str
    path: Path | None = None
    config: Path | None = None
    name: str | None = None

    @property
    def trained(self) -> bool:
        """Whether there are weights."""
        return self.path is not None


def _age(path: Path) -> tuple:
    """Order checkpoints of a folder: by their number, then by their time."""
    numbers = [int(n) for n in re.findall(r'\d+', path.stem)]
    return numbers, path.stat().st_mtime


def _checkpoints(folder: Path, depth: int = _DEPTH) -> list[Path]:
    """List checkpoint files; links that lead out of the folder are left out."""
    root, found = folder.resolve(), []

    def visit(place: Path, left: int) -> None:
        try:
            inside = sorted(place.iterdir())
        except OSError:
            return
        files = [x for x in inside if x.name.lower().endswith(_SUFFIXES) and x.is_file()]
        found.extend(sorted(files, key=_age, reverse=True))
        for x in inside:
            if left and x.is_dir() and not x.is_symlink() and not x.name.startswith('.'):
                visit(x, left - 1)

    visit(folder, depth)
    return [x for x in found if x.resolve().is_relative_to(root)][:_MOST]


def _config_beside(checkpoint: Path, root: Path) -> Path | None:
    """The dumped config of a run: the newest .py file beside the checkpoint."""
    beside = [x for x in checkpoint.parent.glob('*.py') if x.resolve().is_relative_to(root)]
    return max(beside, key=lambda x: x.stat().st_mtime, default=None)


def find_models(
    folder: Path, names: Sequence[str] = (), newest_only: bool = False
) -> list[ModelSource]:
    """List what can be chosen: checkpoints first, then models by name.

    Args:
        folder: Checkpoints are looked for in it and in its folders.
        names: Models of the zoo, with ``*`` and ``?``; they are
            untrained. Defaults to none.
        newest_only: Take the quickstart's three folders alone, and of each the
            newest checkpoint. Defaults to False.
    """
    found = []
    if newest_only:
        for task in QUICKSTART:
            found += _checkpoints(folder / task, depth=0)[:1]
    else:
        found = _checkpoints(folder)
    known, sources, root = set(list_models()), [], folder.resolve()
    for path in found:
        config = _config_beside(path, root)
        stem = path.name.removesuffix('.tar').rsplit('.', 1)[0]
        name = stem if config is None and stem in known else None
        sources.append(ModelSource(path.relative_to(folder).as_posix(), path, config, name))
    for pattern in names:
        matching = list_models(pattern)
        if not matching:
            raise UserError(
                f'no model is named {pattern!r}; coc_mm.apis.list_models() lists all names.'
            )
        for name in matching:
            source = ModelSource(f'{name} (untrained)', name=name)
            sources += [] if source in sources else [source]
    return sources


def _config_of(source: ModelSource) -> Config:
    """The config beside a checkpoint, else the one that the run stored in it."""
    if source.config is not None:
        return read_config(source.config)
    meta = load_checkpoint_safely(source.path).get('meta') or {}
    if 'cfg' not in meta and 'coc_mm' in meta:  # an official file, of a published model
        meta = convert_checkpoint(str(source.path))['meta']
    text = meta.get('cfg')
    if not isinstance(text, str):
        raise UserError(
            f'{source.label} comes without its config: put the .py file that training wrote beside '
            'it, or name the file as its model is named.'
        )
    return parse_config(text, f'the config in {source.label}')


def load_source(source: ModelSource, device: str = 'cpu') -> tuple[nn.Module, Config]:
    """Load a model; only tensors and plain values are read from its files.

    Args:
        source: Which one.
        device: Where to. Defaults to ``'cpu'``.
    """
    if source.name is not None:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # untrained models show the same picture every time
            model = get_model(source.name, pretrained=source.path or False, device=device)
        return model, getattr(model, 'cfg', None) or model._config
    config = _config_of(source)
    return load_model(config, str(source.path), device), config
