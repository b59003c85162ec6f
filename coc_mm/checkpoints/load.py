"""Read checkpoints of unknown origin without running what is pickled in them.

A checkpoint is a pickle, and a pickle can call any function. PyTorch's
``weights_only`` reader builds tensors and plain containers alone, which is too
narrow for mmengine's own files: these hold the log history of the run. Its
loader therefore falls back to an unrestricted load. Here the reader gets the few
harmless names that such files need, and nothing else is ever loaded.
"""

import contextlib
import json
import os
import pickle
import re
import struct
import urllib.error
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch
from mmengine.fileio import register_handler

from coc_mm.checkpoints.careful import check_plan, check_storages
from coc_mm.checkpoints.safe_pickle import (
    LEGACY_PICKLES,
    PlainPickleHandler,
    check_names,
    resolve_placeholders,
    safe_globals,
)
from coc_mm.checkpoints.tensors import why_no_weights
from coc_mm.errors import CheckpointError

__all__ = ['load_checkpoint_safely', 'state_dict_of', 'use_safe_loading']

_ZIP_MAGIC = b'PK\x03\x04'
_PICKLE_MAGIC = b'\x80'


@contextlib.contextmanager
def _only_allowed_names() -> Iterator[None]:
    """Allow our names and no others for the duration of a load."""
    serialization = torch.serialization
    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    serialization.add_safe_globals(safe_globals())
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _check_outside(path: str) -> None:
    """Refuse what can be told from the size and the first bytes of a file."""
    if os.path.isdir(path):
        raise CheckpointError(f'checkpoint {path} is a folder; name the .pth file in it.')
    if not os.path.exists(path):
        raise CheckpointError(
            f'checkpoint {path} does not exist; check the path '
            '(training writes epoch_N.pth or iter_N.pth into its work dir).'
        )
    size = os.path.getsize(path)
    if size == 0:
        raise CheckpointError(f'checkpoint {path} is empty (0 bytes); copy or download it again.')
    with open(path, 'rb') as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise CheckpointError(
            f'checkpoint {path} is a web page, not a checkpoint: the download got a login or '
            'error page. Fetch the file itself.'
        )
    if text.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'checkpoint {path} is a Git LFS pointer; run "git lfs pull".')
    if head.startswith(_ZIP_MAGIC):
        _check_zip(path, size)
    elif not head.startswith(_PICKLE_MAGIC):
        raise CheckpointError(
            f'{path} is not a PyTorch checkpoint (it starts with {head[:12]!r}); '
            'name a .pth file written by torch.save.'
        )


def _check_zip(path: str, size: int) -> None:
    """Refuse archives that are cut off, blow up, or were not written by ``torch.save``."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error):
        raise CheckpointError(
            f'checkpoint {path} is truncated or damaged ({size} bytes); copy or download it again.'
        ) from None
    names = [member.filename for member in members]
    if any(name.endswith('/constants.pkl') for name in names):
        raise CheckpointError(
            f'{path} is a TorchScript archive, not a checkpoint; name a .pth file with weights.'
        )
    # A program of torch 2.4 has no folder.
    if any(x.endswith('/archive_format') or x == 'serialized_exported_program.json' for x in names):
        raise CheckpointError(
            f'{path} is an exported program (.pt2), no checkpoint; name a .pth file with weights.'
        )
    pickles = [name for name in names if name.endswith('/data.pkl')]
    if not pickles:
        listed = ', '.join(names[:3]) or 'nothing'
        raise CheckpointError(
            f'{path} is a zip archive without a PyTorch checkpoint in it (it has {listed[:200]}); '
            'name a .pth file, unpack the archive if it is inside.'
        )
    # torch.save compresses nothing, so what members declare is there byte by byte.
    declared = sum(member.file_size for member in members)
    if declared > size or any(member.compress_type for member in members):
        raise CheckpointError(
            f'checkpoint {path} is refused: its {size} bytes declare {declared} bytes of content, '
            'or are compressed, which torch.save does not do.'
        )
    if len(pickles) > 1 or len({name.casefold() for name in names}) < len(names):
        raise CheckpointError(f'checkpoint {path} is refused: it has members of the same name.')


def _load_safetensors(path: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise CheckpointError(
            f'reading {path} needs the package safetensors: pip install safetensors'
        ) from None
    if not os.path.isfile(path):
        raise CheckpointError(f'checkpoint {path} does not exist; check the path.')
    try:
        with safe_open(path, 'pt') as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        # Files of this package carry class names and config in the header.
        meta = {'meta': _as_pickled(json.loads(header['meta']))} if 'meta' in header else {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # or nested too deeply
        raise CheckpointError(
            f'checkpoint {path} is truncated or no safetensors file ({str(error)[:200]}).'
        ) from None
    checkpoint = {'state_dict': weights, **meta}
    _check_meta(checkpoint, path)
    return _without_program(checkpoint)


def _as_pickled(meta: Any) -> Any:
    """Make colors tuples again, which JSON has as lists and mmdet does not draw with."""
    dataset = meta.get('dataset_meta') if isinstance(meta, dict) else None
    if isinstance(dataset, dict) and isinstance(dataset.get('palette'), list):
        colors = dataset['palette']
        dataset['palette'] = [tuple(c) if isinstance(c, list) else c for c in colors]
    return meta


def load_checkpoint_safely(path: str | os.PathLike, map_location: Any = 'cpu') -> dict[str, Any]:
    """Load a checkpoint file, building only tensors, containers and plain records.

    Read are the files of ``torch.save`` (both formats), of mmengine's Runner, of
    mmcv 1.x and of timm, and ``.safetensors`` where that package is installed.
    Objects of any other type are refused by name, and nothing of theirs is run.

    Args:
        path (str | os.PathLike): A local file.
        map_location: Where tensors go, as in :func:`torch.load`. Defaults to ``'cpu'``.

    Returns:
        dict: What the file holds; ``{'state_dict': ...}`` for ``.safetensors``.

    Raises:
        CheckpointError: The file is missing, empty, truncated, not a checkpoint, or
            holds something that is not data.
    """
    path = os.path.expanduser(os.fspath(path))
    if path.endswith('.safetensors'):
        return _load_safetensors(path)
    _check_outside(path)
    checkpoint: Any = _build(path, map_location, path)
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f'{path} holds a {type(checkpoint).__name__}, not the dict of a checkpoint.'
        )
    _check_meta(checkpoint, path)
    content: Any = checkpoint  # a dict, or what a file has in its place
    return content


def _build(file: str | BinaryIO, map_location: Any, path: str) -> Any:
    """Hold the names in a file against the list, then let the reader build what it holds."""
    try:
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(open(file, 'rb')) if isinstance(file, str) else file
            is_zip = opened.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
            opened.seek(0)
            if is_zip:
                with zipfile.ZipFile(opened) as archive:
                    (name,) = [x for x in archive.namelist() if x.endswith('/data.pkl')]
                    check_names(archive.read(name))
                    check_storages(archive, name)
            else:
                check_names(opened)
                opened.seek(0)
                check_plan(opened, LEGACY_PICKLES)
            opened.seek(0)
            stack.enter_context(_only_allowed_names())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter('ignore')  # of the reader, about odd files
            return resolve_placeholders(
                torch.load(file, map_location=map_location, weights_only=True)
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except Exception as error:  # the readers fail in any way on bytes that nobody vouches for
        if 'out of memory' in str(error) or 'deserialize object on' in str(error):
            raise
        reason = str(error).split('\n')[0][:200]
        raise CheckpointError(
            f'checkpoint {path} is truncated or damaged ({reason or type(error).__name__}); '
            'copy or download it again.'
        ) from None


def _check_meta(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuse metadata that are no such, which all readers take for dicts."""
    meta = checkpoint.get('meta')
    dataset = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    record = meta.get('coc_mm') if isinstance(meta, Mapping) else None
    backbone = record.get('backbone') if isinstance(record, Mapping) else None
    nodes = dict(meta=meta, dataset_meta=dataset, coc_mm=record, backbone=backbone)
    for name, node in nodes.items():
        if node is not None and not isinstance(node, Mapping):
            raise CheckpointError(
                f'checkpoint {path} is refused: its {name} is a {type(node).__name__}, not a dict.'
            )
    for where in (dataset, meta):
        classes = (where or {}).get('classes' if where is dataset else 'CLASSES')
        fits = isinstance(classes, (list, tuple)) and all(isinstance(x, str) for x in classes)
        if classes is not None and not fits:
            raise CheckpointError(
                f'checkpoint {path} is refused: its classes are no list of names.'
            )


def _refusal(path: str, reason: str) -> str:
    """Say why the restricted reader stopped."""
    tensor = re.match('Tensor: (.+)', reason)
    if tensor:
        return (
            f'checkpoint {path} is refused: it holds {tensor[1]}, and weights are dense tensors of '
            'floating point. Ask its author for a file with these.'
        )
    named = re.search(r'GLOBAL (.+?) (?:whose module|was)', reason)
    if named:
        return (
            f'checkpoint {path} is refused: it holds {named[1]}, which is not weights and may run '
            'code (nothing of it was run). Ask its author for a file with the state_dict alone.'
        )
    if 'reduce for unrecognized' in reason or 'Can only' in reason:
        found = re.search(r'Unpickler error:\s*(.{,160})', reason)
        detail = f' ({found[1].strip()})' if found else ''
        return f'checkpoint {path} is refused: it holds objects other than weights{detail}.'
    return (
        f'{path} is not a PyTorch checkpoint, or damaged; name a .pth file written by torch.save.'
    )


def state_dict_of(checkpoint: Mapping[str, Any], path: str = 'the checkpoint') -> dict[str, Any]:
    """Take the weights out of a checkpoint as mmengine does.

    Args:
        checkpoint (Mapping): What :func:`load_checkpoint_safely` returned.
        path (str): Name of the file, for the message.

    Returns:
        dict[str, torch.Tensor]: The entry ``state_dict``, or the checkpoint itself,
        without the prefix ``module.`` of a wrapped model.

    Raises:
        CheckpointError: There are no tensors in it.
    """
    state_dict = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state_dict, Mapping):
        state_dict = {}
    weights = {
        re.sub(r'^module\.', '', str(key)): value
        for key, value in state_dict.items()
        if isinstance(value, torch.Tensor)
    }
    if not weights:
        keys = ', '.join(str(key)[:80] for key in list(checkpoint)[:5]) or 'nothing'
        raise CheckpointError(
            f'{path} holds no weights under "state_dict" or at its top (it holds {keys}).'
        )
    refuse_no_weights(weights, path)
    return weights


def refuse_no_weights(weights: Mapping[str, torch.Tensor], path: str) -> None:
    """Refuse tensors that would be cast to weights silently, or that are NaN.

    Args:
        weights (Mapping[str, torch.Tensor]): By their names.
        path (str): Of the file, for the message.

    Raises:
        CheckpointError: They are not dense tensors of floating point, or hold NaN.
    """
    reason = why_no_weights(weights)
    if reason:
        raise CheckpointError(
            f'checkpoint {path} is refused: it holds {reason}. Take a checkpoint of plain weights, '
            'of a diverged training an earlier one.'
        )


def load_from_local_safely(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local file for mmengine, which logs the function's name after 'load_from_'."""
    return _without_program(load_checkpoint_safely(filename, map_location))


def _without_program(checkpoint: Any) -> Any:
    """Take out the config text of mmcv 1.x, which mmengine runs as Python when it resumes."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    if isinstance(meta, Mapping) and 'config' in meta:
        checkpoint['meta'] = {key: value for key, value in meta.items() if key != 'config'}
    return checkpoint


def load_from_http_safely(filename: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
    """Download once into torch's hub cache, then read like any other file."""
    from mmengine.dist import barrier, is_main_process

    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    target = os.path.join(folder, os.path.basename(filename.split('?')[0]))
    for turn in (is_main_process(), True):  # one process first, then those on other nodes
        if turn and not os.path.exists(target):
            os.makedirs(folder, exist_ok=True)
            try:
                torch.hub.download_url_to_file(filename, target)
            except urllib.error.URLError as error:
                raise CheckpointError(
                    f'checkpoint {filename} cannot be downloaded ({error}); check the address, or '
                    'name a file fetched by other means.'
                ) from None
        barrier()
    return _without_program(load_checkpoint_safely(target, map_location))


def _load_for_backends(file: Any, map_location: Any = None, weights_only: Any = None) -> Any:
    """Stand in for mmengine's last resort, which backends call with a path or a buffer."""
    if isinstance(file, (str, os.PathLike)):
        return _without_program(load_checkpoint_safely(file, map_location))
    return _without_program(_build(file, map_location, 'from the storage backend'))


def use_safe_loading() -> None:
    """Let mmengine read every checkpoint by :func:`load_checkpoint_safely`.

    For the process: after it, ``Runner``, ``init_cfg=dict(type='Pretrained')`` and
    the inference functions of the task libraries load files, downloads and names of
    model zoos no wider than this module does, and ``.pkl`` files of annotations as data.
    """
    from mmengine.runner import CheckpointLoader, checkpoint

    register = CheckpointLoader.register_scheme
    register(prefixes='', loader=load_from_local_safely, force=True)
    register(prefixes=['http://', 'https://'], loader=load_from_http_safely, force=True)
    # Names of model zoos and object stores end in these two functions of the module.
    checkpoint.load_from_http = load_from_http_safely
    checkpoint._safe_torch_load = _load_for_backends
    # Annotations and predictions in pickles, which a config or a data set may name.
    register_handler(['pkl', 'pickle'])(PlainPickleHandler)
