"""What may be rebuilt from a pickle of unknown origin, and how.

PyTorch's restricted reader lets nothing be called but an open-ended list of its own functions
and what a program adds. Some of these take a file's word for the layout of memory: NumPy's type
objects, once their state is set from a file, let an array take bytes for addresses of objects,
and sparse or quantized tensors point outside of their values. Therefore the names in a pickle
are read before anything is built and held against a closed list, and NumPy's arrays are rebuilt
here from their bytes, never by NumPy's own setting of state.
"""

import argparse
import io
import math
import pathlib
import pickle
import pickletools
import re
import reprlib  # short texts, also of lists that hold each other
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.fileio.handlers import PickleHandler
from mmengine.logging.history_buffer import HistoryBuffer

from coc_mm.checkpoints.careful import CarefulUnpickler

__all__ = [
    'PlainPickleHandler',
    'check_names',
    'load_plain_pickle',
    'resolve_placeholders',
    'safe_globals',
]

# Of torch's own: dense tensors, their storages and plain containers.
_OF_TORCH = re.compile(
    r'torch\.(?:(?:Half|Float|Double|BFloat16|Bool|Byte|Char|Short|Int|Long|ComplexFloat|'
    r'ComplexDouble)Storage|Size|device|nn\.parameter\.Parameter|bfloat16|half|bool|'
    r'(?:float|u?int|complex)\d+\w*|'
    r'_utils\._rebuild_(?:tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)|'
    r'Tensor|_tensor\._rebuild_from_type_v2)'  # tensors with attributes, such as FSDP's
    r'|torch\.storage\.UntypedStorage'
    r'|collections\.(?:OrderedDict|Counter)|builtins\.(?:set|complex|getattr)'
    r'|__builtin__\.(?:set|complex|getattr)'
)
# What is told apart in the message: tensors that no weight of a model is.
_ODD_TENSORS = {
    'torch._utils._rebuild_sparse_tensor': 'a sparse tensor',
    'torch._utils._rebuild_qtensor': 'a quantized tensor',
    'torch._utils._rebuild_nested_tensor': 'a nested tensor',
    'torch._utils._rebuild_meta_tensor_no_storage': 'a tensor without data (device meta)',
    'torch._utils._rebuild_wrapper_subclass': 'a tensor of another kind (wrapper subclass)',
}
_DTYPE = re.compile(r'[<>=|]?[?bBhHiIlLqQefdgFDucUSO]\d{0,9}')
# Bytes that views may claim beyond what is stored: weights that modules share.
_MAX_EXPANDED = 1 << 30
#: In a file of torch before 1.6: magic number, version, system, content, keys of the storages.
LEGACY_PICKLES = 5


def _history_attribute(owner: type, name: str) -> Any:
    """Stand in for ``getattr``, by which methods of HistoryBuffer are pickled."""
    if owner is not HistoryBuffer or not isinstance(name, str) or name.startswith('_'):
        raise pickle.UnpicklingError(
            f'Unsupported global: GLOBAL getattr({reprlib.repr(owner)}, {reprlib.repr(name)}) was'
        )
    return getattr(owner, name)


class _Rebuilt:
    """Something of NumPy's under construction; :func:`settled` puts its value in its place."""

    __hash__ = None  # type: ignore[assignment]  # as Python has it for what is not hashable
    value: Any = None


class _DType(_Rebuilt):
    def __init__(self, code: Any, *_: Any) -> None:
        if isinstance(code, bytes):
            code = code.decode('latin1')
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(
                f'Can only build arrays of numbers and text, not {reprlib.repr(code)}'
            )
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; anything else would be a layout of its own."""
        order, *layout = state[1:5]
        size = state[5]
        if any(part is not None for part in layout) or size not in (-1, self.value.itemsize):
            raise pickle.UnpicklingError('Can only build arrays of plain types')
        if order in ('<', '>'):
            self.value = self.value.newbyteorder(order)
        elif order not in ('|', '='):
            raise pickle.UnpicklingError(
                f'Can only build arrays of a byte order, not {reprlib.repr(order)}'
            )


def _from_bytes(dtype: Any, data: Any, shape: tuple, order: Any) -> np.ndarray:
    """(shape) of dtype, a copy of what the file holds."""
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError('Can only build arrays of plain types')
    if not all(isinstance(n, int) and 0 <= n < 2**48 for n in shape) or len(shape) > 32:
        raise ValueError(f'an array of shape {reprlib.repr(shape)}')
    count = math.prod(shape)
    if dtype.value.hasobject:
        if not isinstance(data, list) or len(data) != count:
            raise ValueError('an array of objects without its objects')
        array = np.empty(count, object)
        for i, item in enumerate(data):
            array[i] = item
        return array.reshape(shape, order=order)
    data = data.encode('latin1') if isinstance(data, str) else data
    if not isinstance(data, bytes) or len(data) != count * dtype.value.itemsize:
        raise ValueError('an array of another size than its bytes')
    if not data:
        return np.empty(shape, dtype.value)
    return np.frombuffer(data, dtype.value).reshape(shape, order=order).copy(order)


class _Array(_Rebuilt):
    def __init__(self, *_: Any) -> None:
        """Begin; class, shape and type of the beginning are replaced by those of the state."""

    def __setstate__(self, state: Any) -> None:
        """Take shape, type and bytes."""
        _, shape, dtype, fortran, data = state
        self.value = _from_bytes(dtype, data, tuple(shape), 'F' if fortran else 'C')


def _scalar(dtype: Any, data: Any) -> Any:
    """One number, as NumPy pickles it."""
    if isinstance(dtype, _DType) and dtype.value.hasobject:
        raise pickle.UnpicklingError('Can only build numbers and text, not objects')
    return _from_bytes(dtype, data, (), 'C')[()]


def _no_array(*_: Any) -> None:
    """Stand in for ``numpy.ndarray``, which is named in pickles but never called."""
    raise pickle.UnpicklingError('Can only build arrays from their bytes')


def _encode(text: Any, encoding: Any = 'latin1') -> bytes:
    """Stand in for ``codecs.encode``, by which protocol 2 writes bytes as text."""
    if not isinstance(text, str):
        raise pickle.UnpicklingError('Can only encode text')
    return text.encode('latin1' if encoding == 'latin1' else 'utf-8')


def _under_name(function: Callable, module: str, name: str) -> Callable:
    """Wrap a function so that the reader knows it by another full name.

    Pairs of object and name, the reader's own way to do this, came after torch 2.4.
    """

    def alias(*args):
        return function(*args)

    alias.__module__, alias.__name__, alias.__qualname__ = module, name, name
    return alias


def safe_globals() -> list:
    """Collect what checkpoints of mmengine, mmcv 1.x and timm contain beyond tensors.

    Returns:
        list: For ``torch.serialization.add_safe_globals``.
    """
    allowed = [
        HistoryBuffer,  # Runner checkpoints: message_hub
        _under_name(_encode, '_codecs', 'encode'),  # not torch's own before 2.5
        _under_name(_history_attribute, 'builtins', 'getattr'),
        _under_name(_no_array, 'numpy', 'ndarray'),
        _under_name(_DType, 'numpy', 'dtype'),
        _DType,
        _Array,
        argparse.Namespace,  # timm: the options of the training script
        pathlib.PosixPath,
        pathlib.PurePosixPath,
    ]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # numpy 1.x, 2.x
        allowed += [
            _under_name(_Array, module, '_reconstruct'),
            _under_name(_scalar, module, 'scalar'),
        ]
    return allowed


_OURS = frozenset(
    f'{x.__module__}.{x.__qualname__}' for x in safe_globals() if x not in (_DType, _Array)
)


def check_names(file: Any) -> None:
    """Read the names of functions and classes in a pickle; nothing is built.

    Args:
        file (bytes | BinaryIO): The one pickle of a zip archive, or the open file of the
            older format, which begins with five.

    Raises:
        pickle.UnpicklingError: A name is not on the list; the text says which.
        ValueError: It is no pickle.
    """
    count = 1 if isinstance(file, bytes) else LEGACY_PICKLES
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    for _ in range(count):
        start = file.read(1)
        if not start:
            break
        file.seek(-1, io.SEEK_CUR)
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == 'GLOBAL':
                # NumPy 1 and Python 2 are written "module name" here, with a space.
                _check_name(str(argument).replace(' ', '.'))
            elif opcode.name in ('INST', 'STACK_GLOBAL', 'OBJ') or opcode.name.startswith('EXT'):
                raise pickle.UnpicklingError(f'Can only read protocol 2, found {opcode.name}')


def _check_name(name: str) -> None:
    if name in _ODD_TENSORS:
        raise pickle.UnpicklingError(f'Tensor: {_ODD_TENSORS[name]}')
    if not _OF_TORCH.fullmatch(name) and name not in _OURS:
        name = re.sub(r'^(builtins|__builtin__)\.', '', name)
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {name[:120]} was')


def resolve_placeholders(content: Any) -> Any:
    """Put arrays in the place of what stood for them, and refuse what hides in containers.

    Args:
        content: What the reader built; changed in place.

    Returns:
        Any: The same, or the array that it is itself.

    Raises:
        ValueError: A dict carries attributes of its own, or views claim more than is stored.
    """
    seen, left = set(), [content]
    done: dict[int, tuple] = {}
    claimed, stored = 0, {}
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, OrderedDict):
            _check_metadata(vars(node))
        if isinstance(node, (argparse.Namespace, HistoryBuffer)):
            node = vars(node)
        if isinstance(node, dict):
            for key, value in node.items():
                node[key] = _plain(value, done)
            left += node.values()
        elif isinstance(node, list):
            node[:] = [_plain(value, done) for value in node]
            left += node
        elif isinstance(node, np.ndarray) and node.dtype.hasobject:
            for i, value in enumerate(node.flat):
                node.flat[i] = _plain(value, done)
            left += node.flat
        elif isinstance(node, tuple):
            left += node
        elif isinstance(node, torch.Tensor) and node.layout == torch.strided:
            if type(node) in (torch.Tensor, torch.nn.Parameter):
                vars(node).clear()  # FSDP leaves notes; others might stand in for a method
            claimed += node.numel() * node.element_size()
            storage = node.untyped_storage()
            stored[storage._cdata] = storage.nbytes()
    if claimed - sum(stored.values()) > _MAX_EXPANDED:
        raise ValueError(
            f'tensors of {claimed / 1e9:.1f} GB of which {sum(stored.values()) / 1e9:.3f} are there'
        )
    return _plain(content, done)


def _plain(value: Any, done: dict[int, tuple]) -> Any:
    """Give what stands in the place of a value; tuples that were seen are in ``done``."""
    if isinstance(value, _Rebuilt):
        return value.value
    if type(value) is tuple and value:
        if id(value) not in done:
            found = tuple([_plain(x, done) for x in value])
            same = all(x is y for x, y in zip(found, value, strict=True))
            done[id(value)] = value, value if same else found
        return done[id(value)][1]
    return value


def _check_metadata(attributes: dict) -> None:
    """Let a state dict have its versions by module, and no attribute in the place of a method."""
    strange = set(attributes) - {'_metadata'}
    if strange:
        raise ValueError(f'a dict with the attribute {str(min(map(str, strange)))[:40]!r}')
    metadata = attributes.get('_metadata', {})
    if not isinstance(metadata, dict) or not all(isinstance(x, dict) for x in metadata.values()):
        raise ValueError('a state dict whose versions are none')


def _storage(data: Any) -> Any:
    """Stand in for ``torch.storage._load_from_bytes``, which reads without restriction."""
    check_names(io.BytesIO(data))  # of the older format
    return torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)


class _PlainUnpickler(CarefulUnpickler):
    """Builds containers, numbers, text, arrays and dense tensors."""

    _names: Mapping[str, Any] = {f'{x.__module__}.{x.__qualname__}': x for x in safe_globals()} | {
        'collections.OrderedDict': OrderedDict,
        'collections.Counter': Counter,
        'builtins.set': set,
        'builtins.complex': complex,
        '__builtin__.set': set,  # by the protocols up to 2
        '__builtin__.complex': complex,
        'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
        'torch.storage._load_from_bytes': _storage,
        'torch.Size': torch.Size,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Give what a name of the list stands for."""
        full = f'{module}.{name}'
        if full not in self._names or full.startswith(__name__):
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {full[:120]} was')
        return self._names[full]


def load_plain_pickle(file: Any) -> Any:
    """Read a pickle of annotations or predictions without running what is in it.

    Args:
        file (BinaryIO): The pickle, of any protocol.

    Returns:
        Any: Containers, numbers, text, arrays and dense tensors.

    Raises:
        ValueError: It holds something else, or is damaged.
    """
    try:
        return resolve_placeholders(_PlainUnpickler(file).load())
    except Exception as error:  # unpickling fails in any way on bytes that nobody vouches for
        found = re.search(r'GLOBAL (.+) was', str(error))
        reason = f'it holds {found[1]}, which is no data and may run code' if found else error
        raise ValueError(
            f'a pickle (.pkl) of annotations is refused ({reason or type(error).__name__}): only '
            'containers, numbers, text, arrays and tensors are read. Save it as JSON, or as these '
            'alone.'
        ) from None


class PlainPickleHandler(PickleHandler):
    """mmengine's handler for ``.pkl`` files, reading by :func:`load_plain_pickle`."""

    def load_from_fileobj(self, file: Any, **_: Any) -> Any:
        """Read from an open file.

        Args:
            file (BinaryIO): The pickle.

        Returns:
            Any: What it holds.
        """
        return load_plain_pickle(file)
