"""Act when a module of another library is imported, without importing it.

Importing the libraries only to change them would make ``import coc_mm`` slow.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ['on_import']

_ACTIONS: dict[str, list[Callable[[ModuleType], None]]] = {}


class _ActingLoader(Loader):
    """Loads as the module's own loader does, then acts."""

    def __init__(self, loader: Loader, actions: list[Callable[[ModuleType], None]]) -> None:
        self._loader, self._actions = loader, actions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for action in self._actions:
            action(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # get_source, get_filename, ...


class _Finder(MetaPathFinder):
    """Finds modules that have actions through the finders behind it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        actions = _ACTIONS.pop(name, None)  # popped first: the search below comes back here
        if actions is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            _ACTIONS[name] = actions
            return spec
        spec.loader = _ActingLoader(spec.loader, actions)
        return spec


_FINDER = _Finder()


def on_import(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call ``action(module)``: now if the module is imported already, else after its import."""
    if name in sys.modules:
        action(sys.modules[name])
        return
    _ACTIONS.setdefault(name, []).append(action)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
