"""Loading checkpoints by path, address or name, official ones under our names."""

import os
import re
import urllib.error
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coc_mm.checkpoints.official import convert_in_memory
from coc_mm.checkpoints.safe_pickle import check_tensors, read_file, read_pickle
from coc_mm.errors import CheckpointError, UserError, print_rank0

# Fewer common weights than this share, and a checkpoint to start from is another model's.
_MIN_SHARE = 0.5
# What was read for a check and will be loaded next, by path, time and size: at most two files.
_HELD: dict[tuple, dict[str, Any]] = {}


def is_local(path: str) -> bool:
    """Tell a file of this machine from a URL or a name of a model zoo."""
    return re.match(r'^(\S+:)?\w[\w+.-]*://', path) is None


def load_checkpoint_safely(
    path: str | os.PathLike, map_location: Any = 'cpu', hold: bool = False
) -> dict[str, Any]:
    """Load a checkpoint, running nothing of it; official weights get the names of our models.

    Args:
        path: A local file (see :func:`~coc_mm.checkpoints.safe_pickle.read_file`), ``http(s)://``,
            or any scheme of mmengine's ``CheckpointLoader``.
        map_location: As in :func:`torch.load`.
        hold: Keep the result for the next call for this file, which is not read again then.
    """
    path = os.path.expanduser(os.fspath(path))
    if re.match(r'https?://', path):
        path = _download(path)
    elif not is_local(path) or re.match(r'[\w-]{2,}:', path):
        from mmengine.runner import CheckpointLoader

        use_safe_loading()
        return CheckpointLoader.load_checkpoint(path, map_location)
    status = os.stat(path) if os.path.isfile(path) else None
    key = (os.path.realpath(path), status and status.st_mtime_ns, status and status.st_size)
    checkpoint = _HELD.pop(key, None)
    if checkpoint is None:
        checkpoint = convert_in_memory(read_file(path, map_location), path)
    if hold:
        _HELD[key] = checkpoint
        for oldest in list(_HELD)[:-2]:
            del _HELD[oldest]
    return checkpoint


def _download(address: str) -> str:
    """Download once into torch's hub cache; give the path there."""
    from mmengine.dist import barrier, is_main_process

    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    target = os.path.join(folder, os.path.basename(address.split('?')[0]))
    for turn in (is_main_process(), True):  # one process first, then those on other nodes
        if turn and not os.path.exists(target):
            os.makedirs(folder, exist_ok=True)
            try:
                torch.hub.download_url_to_file(address, target)
            except urllib.error.URLError as error:
                raise CheckpointError(
                    f'checkpoint {address} cannot be downloaded ({error}); check the address, or '
                    'name a file fetched by other means.'
                ) from None
        barrier()
    return target


def load_from_local_safely(filename: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
    """Read a file for mmengine, which logs the function's name after 'load_from_'."""
    checkpoint = load_checkpoint_safely(filename, map_location)
    if meta := checkpoint.get('meta'):  # mmengine runs a config text of mmcv 1.x when it resumes
        meta = {key: value for key, value in meta.items() if key != 'config'}
        checkpoint = {**checkpoint, 'meta': meta}
    return checkpoint


def _load_for_backends(file: Any, map_location: Any = None, weights_only: Any = None) -> Any:
    """Stand in for mmengine's last resort, which backends call with a path or a buffer."""
    if isinstance(file, (str, os.PathLike)):
        return load_from_local_safely(os.fspath(file), map_location)
    name = 'from the storage backend'
    return convert_in_memory(read_pickle(file, map_location, name), name)


def use_safe_loading() -> None:
    """Let mmengine read every checkpoint by :func:`load_checkpoint_safely`, for the process."""
    from mmengine.runner import CheckpointLoader, checkpoint

    for prefixes in ('', ['http://', 'https://']):
        CheckpointLoader.register_scheme(prefixes, load_from_local_safely, force=True)
    # Names of model zoos and object stores end in these two functions of the module.
    checkpoint.load_from_http = load_from_local_safely
    checkpoint._safe_torch_load = _load_for_backends


def state_dict_of(checkpoint: Mapping[str, Any], path: str = 'the checkpoint') -> dict[str, Any]:
    """Take the weights out of a checkpoint as mmengine does, without a wrapper's ``module.``."""
    given = checkpoint.get('state_dict', checkpoint)
    given = given if isinstance(given, Mapping) else {}
    weights: Any = OrderedDict(
        (re.sub(r'^module\.', '', str(key)), value)
        for key, value in given.items()
        if isinstance(value, torch.Tensor)
    )
    if not weights:
        keys = ', '.join(str(key)[:80] for key in list(checkpoint)[:5]) or 'nothing'
        raise CheckpointError(
            f'{path} holds no weights under "state_dict" or at its top (it holds {keys}).'
        )
    check_tensors(weights, path)
    metadata = getattr(given, '_metadata', {})
    weights._metadata = {re.sub(r'^module\.?', '', k): value for k, value in metadata.items()}
    return weights


@dataclass
class Comparison:
    """How the keys and shapes of a checkpoint lie against those of a model."""

    common: int
    missing: list[str]  # counters of batch norms left out
    unexpected: list[str]
    mismatched: list[str]  # with both shapes

    @classmethod
    def of(cls, state_dict: Mapping, model_state: Mapping) -> 'Comparison':
        """Compare the state dict of a checkpoint with that of a model."""
        shared = [key for key in model_state if key in state_dict]
        mismatched = [
            f'{key} is {_shape(state_dict[key])}, the model has {_shape(model_state[key])}'
            for key in shared
            if state_dict[key].shape != model_state[key].shape
        ]
        missing = _without_counters(key for key in model_state if key not in state_dict)
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

    def describe(self, limit: int | None = 3) -> str:
        """Say what differs, with counts and up to ``limit`` keys of each kind (None: all)."""
        told = []
        for keys, what, separator in (
            (self.mismatched, 'of another shape', '; '),
            (self.missing, 'missing', ', '),
            (self.unexpected, 'unexpected', ', '),
        ):
            if keys:
                more = ', ...' if limit is not None and len(keys) > limit else ''
                told.append(f'{len(keys)} {what} ({separator.join(keys[:limit])}{more})')
        return f'{self.common} weights match; ' + ', '.join(told)


def _without_counters(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if not key.endswith('num_batches_tracked')]


def _shape(tensor: torch.Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'a scalar'


def compare(model: nn.Module, state_dict: dict) -> Comparison:
    """Compare, then let the model's own renaming have a say; its weights may be overwritten."""
    comparison = Comparison.of(state_dict, model.state_dict())
    if comparison.exact:
        return comparison
    try:
        keys = model.load_state_dict(dict(state_dict), strict=False)
    except RuntimeError:  # shapes differ
        return comparison
    common = len(model.state_dict()) - len(keys.missing_keys)
    return Comparison(common, _without_counters(keys.missing_keys), list(keys.unexpected_keys), [])


def check_weights(model: nn.Module, checkpoint: Mapping, path: str, strict: bool) -> None:
    """Refuse a checkpoint of another model; the model's weights may be overwritten.

    If not ``strict``, half of the smaller side must match, and what does not is printed.
    """
    comparison = compare(model, state_dict_of(checkpoint, path))
    if comparison.exact:
        return
    if strict or comparison.share < _MIN_SHARE:
        raise UserError(
            f'checkpoint {path} is of another model than the config: {comparison.describe()}.\n'
            'Name the checkpoint that was trained with this config, or the config it was '
            'trained with.'
        )
    print_rank0(f'load_from {path}: {comparison.describe()}')


def apply_record(config: Any, checkpoint: dict, path: str, given: Iterable[str] = ()) -> None:
    """Give a config the mixer that converted weights were trained with, if ``meta`` records one.

    The denominator and the centers of its backbone change in place, less those ``given`` (as
    names or dotted keys) and an assumed denominator where the config names one. What is overruled
    is printed.
    """
    record = (checkpoint.get('meta') or {}).get('coc_mm') or {}
    backbone = config.model.get('module', config.model).get('backbone') or {}
    assumed = str(record.get('denominator_is')).startswith('assumed')
    kept = {name.rsplit('.', 1)[-1] for name in given}
    for key, value in record.get('backbone', {}).items():
        said = backbone.get(key)
        if key in kept or (key == 'denominator' and assumed and said is not None):
            continue
        if said not in (None, value):
            print_rank0(
                f'{path}: its weights were trained with {key}={value!r}, which goes before '
                f'{said!r} of the config.'
            )
        backbone[key] = value
