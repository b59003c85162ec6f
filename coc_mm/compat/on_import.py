"""Act when a module of another library is imported, without importing it.

Importing the libraries only to change them would make ``import coc_mm`` slow.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_ACTIONS: dict[str, list[Callable[[ModuleType], None]]] = {}


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
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            for action in actions:
                action(module)

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
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
