"""Read the plan of a pickle before anything is built by it: depth, time, and bytes it asks for."""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, ClassVar

__all__ = ['CarefulUnpickler', 'check_plan', 'check_storages']

_DEEPEST = 100
# From here on integers share their hashes with smaller ones, as many as somebody likes.
_FIRST_TO_COLLIDE = 2**61 - 1
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
    """Python's reader written in Python, which no file takes memory, time or the stack from.

    The one in C makes a table as long as an index in the file says, 64 GB for ten bytes; and both
    hash what is a key, which takes for ever for tuples that hold each other twice, and for those
    nested a hundred thousand deep ends the process. So the work of looking keys up is bounded by
    the size of the file.

    Args:
        file (BinaryIO): Where the pickle begins.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        start = file.tell()
        self._work_left = 100_000 + 20 * (file.seek(0, io.SEEK_END) - start)
        file.seek(start)
        # Depth and number of items of tuples that hold tuples, by identity.
        self._nested: dict[int, tuple[int, int]] = {}

    def _measure(self, item: Any) -> tuple[int, int]:
        """Depth of an item, and with how many others it is hashed."""
        if type(item) is not tuple:
            return 0, 1
        return self._nested.get(id(item), (1, 1 + len(item)))

    def _push(self, items: tuple) -> None:
        """Push a tuple."""
        inner = [self._measure(item) for item in items if type(item) is tuple]
        depth = 1 + max((depth for depth, _ in inner), default=0)
        if depth > _DEEPEST:
            raise ValueError(f'tuples nested more than {_DEEPEST} deep')
        if inner:
            count = 1 + len(items) - len(inner) + sum(count for _, count in inner)
            if count > self._work_left:
                raise ValueError(f'tuples that hold each other {count:.0e} times')
            self._nested[id(items)] = depth, count
        else:
            self._nested.pop(id(items), None)  # of one that is gone
        self.append(items)  # type: ignore[attr-defined]

    def _look_up(self, keys: Iterable[Any]) -> None:
        """Account for the hashing of keys."""
        for key in keys:
            if type(key) is int and abs(key) >= _FIRST_TO_COLLIDE:
                raise ValueError(f'the key {str(key)[:30]}')
            self._spend(key)

    def _spend(self, item: Any) -> None:
        self._work_left -= self._measure(item)[1]
        if self._work_left < 0:
            raise ValueError('keys that take too long to look up')

    def _load_tuple(self) -> None:
        self._push(tuple(self.pop_mark()))  # type: ignore[attr-defined]

    def _load_tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise ValueError('a tuple of more than there is')
        del self.stack[-count:]
        self._push(items)

    def _load_one_item(self) -> None:
        self._look_up(self.stack[-2:-1])
        pickle._Unpickler.dispatch[pickle.SETITEM[0]](self)  # type: ignore[arg-type]

    def _load_items(self, opcode: bytes, step: int) -> None:
        """Since the mark: keys and values in turn, or members of a set."""
        self._look_up(self.stack[::step])
        pickle._Unpickler.dispatch[opcode[0]](self)  # type: ignore[arg-type]

    def _load_call(self, opcode: bytes) -> None:
        """Call what may make a set or a dict of its arguments."""
        function, arguments = self.stack[-2:]
        if not callable(function):  # nor is it to be shown: lists may hold each other, too
            raise pickle.UnpicklingError('Can only call what has a name')
        for item in arguments if type(arguments) is tuple else ():
            if isinstance(item, (list, dict)):
                self._look_up(item)
                for pair in item if isinstance(item, list) else ():
                    self._look_up(pair if isinstance(pair, list) else ())
            else:
                self._spend(item)
        pickle._Unpickler.dispatch[opcode[0]](self)  # type: ignore[arg-type]

    def _load_state(self) -> None:
        """Set attributes, whose names are keys again."""
        state = self.stack[-1]
        for part in state if type(state) is tuple else [state]:
            self._look_up(part if isinstance(part, dict) else ())
        pickle._Unpickler.dispatch[pickle.BUILD[0]](self)  # type: ignore[arg-type]

    def _refuse(self) -> None:
        raise pickle.UnpicklingError('Can only build what Python 3 writes')

    stack: list
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.TUPLE[0]: _load_tuple,
        pickle.TUPLE1[0]: lambda self: self._load_tuple_of(1),
        pickle.TUPLE2[0]: lambda self: self._load_tuple_of(2),
        pickle.TUPLE3[0]: lambda self: self._load_tuple_of(3),
        pickle.SETITEM[0]: _load_one_item,
        pickle.SETITEMS[0]: lambda self: self._load_items(pickle.SETITEMS, 2),
        pickle.DICT[0]: lambda self: self._load_items(pickle.DICT, 2),
        pickle.ADDITEMS[0]: lambda self: self._load_items(pickle.ADDITEMS, 1),
        pickle.FROZENSET[0]: lambda self: self._load_items(pickle.FROZENSET, 1),
        pickle.REDUCE[0]: lambda self: self._load_call(pickle.REDUCE),
        pickle.NEWOBJ[0]: lambda self: self._load_call(pickle.NEWOBJ),
        pickle.BUILD[0]: _load_state,
        pickle.INST[0]: _refuse,
        pickle.OBJ[0]: _refuse,
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
        """Note a storage."""
        if type(pid) is not tuple or not pid or pid[0] not in ('storage', 'module'):
            raise ValueError('something kept outside of the pickle that is no storage')
        if pid[0] == 'storage':
            kind, key, _, count = pid[1:5]
            item_size = _ITEM_SIZES.get(kind.__name__ if isinstance(kind, type) else '')
            if item_size is None or type(count) is not int or count < 0:
                raise ValueError('a storage of another type, or without a number of elements')
            if not isinstance(key, (str, int)):
                raise ValueError('a storage without a name')
            size = count * item_size
            self.storages[str(key)] = max(size, self.storages.get(str(key), 0))
        return _Nothing()


def check_plan(file: BinaryIO, count: int) -> None:
    """See that pickles hold no keys that cannot be looked up, or not in reasonable time.

    Args:
        file (BinaryIO): The open file, at the first pickle.
        count (int): Pickles that follow each other, if the file does not end before.

    Raises:
        ValueError: One does, or there is no pickle.
    """
    for _ in range(count):
        start = file.tell()
        if not file.read(1):
            break
        file.seek(start)
        _Plan(file).load()


def check_storages(archive: zipfile.ZipFile, name: str) -> None:
    """See that the storages a checkpoint asks for lie in its archive, with all their bytes.

    The reader of torch 2.4 takes the size from the pickle alone and reads on past the end of
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
