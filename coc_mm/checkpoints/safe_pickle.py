"""Reading checkpoint files of unknown origin: nothing that is pickled in them is run.

A checkpoint is a pickle, and a pickle can call any function. PyTorch's ``weights_only`` reader
builds tensors and plain containers alone; :func:`safe_globals` adds what the files of mmengine and
timm hold besides, and nothing else is allowed while a file is read. NumPy's arrays are rebuilt here
from their bytes: its own reader believes a file about the layout of memory.
"""

import argparse
import contextlib
import json
import os
import pathlib
import pickle
import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer

from coc_mm.errors import CheckpointError

_ZIP_MAGIC = b'PK\x03\x04'
_PICKLE_MAGIC = b'\x80'
_DTYPE = re.compile(r'[<>=|]?[?bBhHiIlLqQefdgFDucUS]\d{0,9}')
# Parameters, and what batch norms count with, are floating point in every model there is.
_FLOATING = re.compile(
    r'(?:^|\.)(?:weight|bias|running_mean|running_var|layer_scale_?[12]|affine_(?:alpha|beta)|'
    r'(?:sim_)?(?:alpha|beta))$'
)
_LOCK = threading.Lock()  # torch keeps one list of safe globals for all threads


class _DType:
    """A ``numpy.dtype`` of numbers or text."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode('latin1') if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(f'Can only build arrays of numbers and text, not {code!r}')
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ('<', '>'):  # the byte order, and nothing else is believed
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """A ``numpy.ndarray`` under construction."""

    value: Any = None

    def __init__(self, *_: Any) -> None:
        """Begin; all follows with the state."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _from_bytes(dtype, data, tuple(shape), 'F' if fortran else 'C')


def _from_bytes(dtype: Any, data: Any, shape: tuple, order: Any = 'C') -> np.ndarray:
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError('Can only build arrays of plain types')
    data = data.encode('latin1') if isinstance(data, str) else data
    return np.frombuffer(data, dtype.value).reshape(shape, order=order).copy(order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _from_bytes(dtype, data, ())[()]


def _no_bytes() -> bytes:
    """Stand in for ``bytes``, which protocol 2 calls for those of an empty array."""
    return b''


def _no_array(*_: Any) -> None:
    """Stand in for ``numpy.ndarray``, which pickles name and never call."""
    raise pickle.UnpicklingError('Can only build arrays from their bytes')


def _history_method(owner: type, name: str) -> Any:
    """Stand in for ``getattr``, by which the methods of HistoryBuffer are pickled."""
    if owner is not HistoryBuffer or not isinstance(name, str) or name.startswith('_'):
        raise pickle.UnpicklingError('Unsupported global: GLOBAL getattr was')
    return getattr(owner, name)


def safe_globals() -> list[Any]:
    """List what checkpoints of mmengine, mmcv 1.x and timm contain beyond tensors."""
    return [
        HistoryBuffer,  # Runner checkpoints: message_hub
        (_history_method, 'builtins.getattr'),
        argparse.Namespace,  # timm: the options of the training script
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        *(_DType, _Array),  # what is called and given a state below
        (_no_bytes, 'builtins.bytes'),
        (_no_array, 'numpy.ndarray'),
        (_DType, 'numpy.dtype'),
        *((_Array, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
        *((_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    ]


@contextlib.contextmanager
def _only_safe_globals() -> Iterator[None]:
    """Allow these names and no others, whatever a program allows elsewhere."""
    serialization = torch.serialization
    with _LOCK:
        before = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        serialization.add_safe_globals(safe_globals())
        try:
            yield
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(before)


def _resolve(node: Any, seen: dict[int, tuple]) -> Any:
    """Put arrays and types in the place of what stood for them, in containers of any kind."""
    if isinstance(node, (_DType, _Array)):
        return node.value
    if id(node) not in seen:
        seen[id(node)] = node, node  # the first keeps the id from being used again
        if isinstance(node, dict):
            node.update({key: _resolve(value, seen) for key, value in node.items()})
        elif isinstance(node, list):
            node[:] = [_resolve(value, seen) for value in node]
        elif type(node) is tuple:
            seen[id(node)] = node, tuple(_resolve(value, seen) for value in node)
        elif isinstance(node, (argparse.Namespace, HistoryBuffer)):
            _resolve(vars(node), seen)
    return seen[id(node)][1]


def read_pickle(file: str | BinaryIO, map_location: Any, path: str) -> Any:
    """Read a file of ``torch.save``, of either format; ``path`` names it in messages."""
    try:
        with _only_safe_globals(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of the reader, about odd files
            content = torch.load(file, map_location=map_location, weights_only=True)
        return _resolve(content, {})
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except Exception as error:  # the readers fail in any way on damaged files
        if 'out of memory' in str(error) or 'deserialize object on' in str(error):
            raise
        reason = str(error).split('\n')[0][:200] or type(error).__name__
        raise CheckpointError(
            f'checkpoint {path} is truncated or damaged ({reason}); copy or download it again.'
        ) from None


def _refusal(path: str, reason: str) -> str:
    if named := re.search(r'GLOBAL (.+?) (?:whose module|was)', reason):
        return (
            f'checkpoint {path} is refused: it holds {named[1][:120]}, which is not weights and '
            'may run code (nothing of it was run). Ask its author for a file with the state_dict '
            'alone.'
        )
    if 'reduce for unrecognized' in reason or 'Can only' in reason:
        found = re.search(r'(?:Trying to call|Can only).{,160}', reason)
        return (
            f'checkpoint {path} is refused: it holds objects other than weights '
            f'({found[0] if found else reason[:160]}).'
        )
    return (
        f'{path} is not a PyTorch checkpoint, or damaged; name a .pth file written by torch.save.'
    )


def read_file(path: str | os.PathLike, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a local file as it is, building only tensors, containers and plain records.

    Read are the files of ``torch.save`` (both formats), mmengine's Runner, mmcv 1.x and timm, and
    ``.safetensors`` (``state_dict`` and ``meta``); all else raises CheckpointError.
    """
    path = os.path.expanduser(os.fspath(path))
    if os.path.isdir(path):
        raise CheckpointError(f'checkpoint {path} is a folder; name the .pth file in it.')
    if not os.path.exists(path):
        raise CheckpointError(
            f'checkpoint {path} does not exist; check the path '
            '(training writes epoch_N.pth or iter_N.pth into its work dir).'
        )
    if path.endswith('.safetensors'):
        checkpoint: Any = _read_safetensors(path)
    else:
        _check_head(path)
        checkpoint = read_pickle(path, map_location, path)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'{path} holds a {type(checkpoint).__name__}, not the dict of a checkpoint.'
        )
    meta = checkpoint.get('meta')
    if meta is not None and not isinstance(meta, Mapping):
        raise CheckpointError(
            f'checkpoint {path} is refused: its meta is a {type(meta).__name__}, not a dict.'
        )
    return checkpoint


def _check_head(path: str) -> None:
    """Refuse what can be told from the size and the first bytes of a file."""
    size = os.path.getsize(path)
    if size == 0:
        raise CheckpointError(f'checkpoint {path} is empty (0 bytes); copy or download it again.')
    with open(path, 'rb') as file:
        head = file.read(512)
    if head.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise CheckpointError(
            f'checkpoint {path} is a web page, not a checkpoint: the download got a login or '
            'error page. Fetch the file itself.'
        )
    if head.startswith(b'version https://git-lfs'):
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
    for member, kind in (
        ('/constants.pkl', 'a TorchScript archive'),
        ('/archive_format', 'an exported program (.pt2)'),
    ):
        if any(name.endswith(member) for name in names):
            raise CheckpointError(
                f'{path} is {kind}, not a checkpoint; name a .pth file with weights.'
            )
    if not any(name.endswith('/data.pkl') for name in names):
        raise CheckpointError(
            f'{path} is a zip archive without a PyTorch checkpoint in it (it has '
            f'{", ".join(names[:3])[:200] or "nothing"}); name a .pth file, unpack the archive if '
            'it is inside.'
        )
    # torch.save compresses nothing, so what members declare is there byte by byte.
    declared = sum(member.file_size for member in members)
    if declared > size or any(member.compress_type for member in members):
        raise CheckpointError(
            f'checkpoint {path} is refused: its {size} bytes declare {declared} bytes of content, '
            'or are compressed, which torch.save does not do.'
        )


def _read_safetensors(path: str) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, 'pt') as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        # Files of this package carry class names and config in the header.
        meta = json.loads(header['meta']) if 'meta' in header else None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # or nested too deeply
        raise CheckpointError(
            f'checkpoint {path} is truncated or no safetensors file ({str(error)[:200]}).'
        ) from None
    # JSON has lists where mmdet draws with tuples.
    dataset = meta.get('dataset_meta') if isinstance(meta, dict) else None
    if isinstance(dataset, dict) and isinstance(dataset.get('palette'), list):
        dataset['palette'] = [tuple(x) if isinstance(x, list) else x for x in dataset['palette']]
    return dict(state_dict=weights) if meta is None else dict(state_dict=weights, meta=meta)


def check_tensors(weights: Mapping[str, torch.Tensor], path: str) -> None:
    """Refuse tensors that would be cast to weights silently, or that are NaN."""
    kinds = {
        'not dense': lambda _, x: x.layout != torch.strided or x.is_quantized or x.is_nested,
        'without data (device meta)': lambda _, x: x.is_meta,
        'complex': lambda _, x: x.is_complex(),
        'of integers': lambda name, x: not x.is_floating_point() and bool(_FLOATING.search(name)),
        'NaN': lambda _, x: x.is_floating_point() and bool(x.float().isnan().any()),
    }
    for kind, is_of_it in kinds.items():
        found = [name for name, value in weights.items() if is_of_it(name, value)]
        if found:
            named = ', '.join(found[:3]) + (', ...' if len(found) > 3 else '')
            raise CheckpointError(
                f'checkpoint {path} is refused: {len(found)} of its {len(weights)} tensors are '
                f'{kind} ({named}; {weights[found[0]].dtype}). Take a checkpoint of plain weights, '
                'of a diverged training an earlier one.'
            )
