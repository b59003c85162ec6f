"""Read the plan of a pickle before anything is built by it: how deep, and from which bytes."""

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar

__all__ = ['CarefulUnpickler', 'check_plan', 'check_storages']

_DEEPEST = 100
# Bytes of an element, by the storages that checkpoints may name.
_ITEM_SIZES = {
    f'torch.{name}Storage': size
    for size, names in {
        1: ('Bool', 'Byte', 'Char'),
        2: ('Half', 'BFloat16', 'Short'),
        4: ('Float', 'Int'),
        8: ('Double', 'Long', 'ComplexFloat'),
        16: ('ComplexDouble',),
    }.items()
    for name in names
} | {'torch.storage.UntypedStorage': 1}


class CarefulUnpickler(pickle._Unpickler):
    """Python's reader written in Python, which no file takes memory or the stack from.

    The one in C makes a table as long as an index in the file says, 32 GB for ten bytes; and both
    hash what is a key, which for tuples nested a hundred thousand deep ends the process.

    Args:
        file (BinaryIO): Where the pickle begins.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._depths: dict[int, int] = {}  # of tuples that hold tuples, by identity

    def _nested(self, items: tuple) -> None:
        """Push a tuple."""
        inner = [self._depths.get(id(item), 1) for item in items if type(item) is tuple]
        depth = 1 + max(inner, default=0)
        if depth > _DEEPEST:
            raise ValueError(f'tuples nested more than {_DEEPEST} deep')
        self._depths[id(items)] = depth
        if not inner:
            del self._depths[id(items)]  # or an entry of one that is gone
        self.append(items)  # type: ignore[attr-defined]

    def _load_tuple(self) -> None:
        self._nested(tuple(self.pop_mark()))  # type: ignore[attr-defined]

    def _load_tuple_of(self, count: int) -> None:
        stack = self.stack  # type: ignore[attr-defined]
        items = tuple(stack[-count:])
        if len(items) < count:
            raise ValueError('a tuple of more than there is')
        del stack[-count:]
        self._nested(items)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.TUPLE[0]: _load_tuple,
        pickle.TUPLE1[0]: lambda self: self._load_tuple_of(1),
        pickle.TUPLE2[0]: lambda self: self._load_tuple_of(2),
        pickle.TUPLE3[0]: lambda self: self._load_tuple_of(3),
    }


class _Nothing:
    """Stands for whatever a name of a pickle would build; takes all and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> '_Nothing':
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _take(self, *_: Any, **__: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = __call__ = _take


class _Plan(CarefulUnpickler):
    """Notes the storages that a checkpoint asks for, and builds containers of nothing."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, int] = {}  # most bytes asked for, by key
        self._types: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Give a class of nothing that knows its name."""
        full = f'{module}.{name}'
        return self._types.setdefault(full, type(full, (_Nothing,), {}))

    def persistent_load(self, pid: Any) -> Any:
        """Note a storage; what is none is left to torch's reader to refuse."""
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == 'storage':
            kind, key, count = pid[1], pid[2], pid[4]
            name = str(getattr(kind, '__name__', kind))
            item_size = _ITEM_SIZES.get(name)
            if item_size is None or type(count) is not int or count < 0:
                raise ValueError(f'a storage of {str(count)[:40]} elements, {name[:80]}')
            size = count * item_size
            self.storages[str(key)] = max(size, self.storages.get(str(key), 0))
        return _Nothing()


def check_plan(file: BinaryIO, count: int) -> None:
    """See that no tuple in pickles is nested too deeply to be looked up.

    Args:
        file (BinaryIO): The open file, at the first pickle.
        count (int): Pickles that follow each other, if the file does not end before.

    Raises:
        ValueError: One is, or there is no pickle.
    """
    for _ in range(count):
        start = file.tell()
        if not file.read(1):
            break
        file.seek(start)
        _Plan(file).load()


def check_storages(archive: zipfile.ZipFile, name: str) -> None:
    """See that the storages a checkpoint asks for lie in its archive, with all their bytes.

    Readers of torch before 2.5 take the size from the pickle alone and read on past the end of
    what is there.

    Args:
        archive (zipfile.ZipFile): Written by ``torch.save``.
        name (str): Of the pickle in it.

    Raises:
        ValueError: A storage is missing or shorter than asked for, or as :func:`check_plan`.
    """
    plan = _Plan(io.BytesIO(archive.read(name)))
    plan.load()
    folder = name.removesuffix('data.pkl')
    sizes: Mapping[str, int] = {x.filename: x.file_size for x in archive.infolist()}
    for key, size in plan.storages.items():
        there = sizes.get(f'{folder}data/{key}')
        if there is None or there < size:
            held = 'is missing' if there is None else f'has {there} bytes of {size}'
            raise ValueError(f'storage {key[:40]} {held}')
