"""A stand-in for ``mmcv._ext``, mmcv's compiled operators, built on torchvision's.

``pip install onedl-mmcv`` builds mmcv in isolation, without torch, and silently leaves out
``mmcv._ext``; ``import mmdet.models`` then fails. :func:`install` appends a finder to the *end* of
``sys.meta_path`` that answers for ``mmcv._ext`` alone: a compiled module always wins.

What :mod:`coc_mm.compat.mmcv_operators` lacks resolves, because ``mmcv.ops`` asserts that it
exists, to a function that raises when it is called.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

_NAME = 'mmcv._ext'


class _StandInLoader(Loader):
    """Fills a new, empty ``mmcv._ext`` with the stand-in's operators."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            from coc_mm.compat.mmcv_operators import OPERATORS
        except (ImportError, OSError, RuntimeError) as error:
            # A torchvision of another torch fails with RuntimeError ("operator
            # torchvision::nms does not exist") or OSError (undefined symbol).
            raise ModuleNotFoundError(
                f'{_NAME}: mmcv was installed without its compiled operators, and '
                f'torchvision, which would stand in, does not import ({error}). Install '
                'the torchvision release that belongs to your torch, or compile mmcv '
                '(MMCV_WITH_OPS=1).',
                name=_NAME,
            ) from error

        def missing(name: str) -> Callable:
            # With an underscore it is inspect, copy or a shell asking for a protocol.
            if name.startswith('_'):
                raise AttributeError(f'module {_NAME!r} has no attribute {name!r}')
            function = _refusal(name)
            setattr(module, name, function)  # the same object from now on
            return function

        module.__doc__ = __doc__
        module.__dict__.update(OPERATORS)
        module.__dict__['__getattr__'] = missing  # PEP 562


class _StandInFinder(MetaPathFinder):
    """Answers for ``mmcv._ext`` where every finder before it had none."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _NAME:
            return None
        return ModuleSpec(fullname, _StandInLoader(), origin='coc_mm.compat, on torchvision')


_FINDER = _StandInFinder()


def _refusal(name: str) -> Callable:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator {name!r} is not available: mmcv was installed without its "
            "compiled operators, and coc_mm's stand-in for them does not have this one. "
            'Either use a model that does not need it, or compile mmcv against your '
            'torch: MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir '
            '--no-binary onedl-mmcv --no-deps --force-reinstall onedl-mmcv'
        )

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__module__ = _NAME
    return refuse


def install() -> None:
    """Make ``mmcv._ext`` importable where mmcv lacks it; imports neither mmcv nor torchvision."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
