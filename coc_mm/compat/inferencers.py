"""Models of ours by name in ``DetInferencer`` and ``MMSegInferencer``.

Their base class reads the metafiles of the library's own package only.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any


def add_model_names(
    module: Any,
    find: Callable[[str | None, str], tuple | None],
    list_names: Callable[[str | None], Iterable[str]],
) -> None:
    """Let the inferencers of ``mmengine.infer.infer`` find and list more models.

    ``find`` takes a library's scope and a name and returns config and weights, or None;
    ``list_names`` takes a scope, or None for all.
    """
    base = module.BaseInferencer
    load, list_models = base._load_model_from_metafile, base.list_models

    @functools.wraps(load)
    def load_more(self, model):
        return find(self.scope, model) or load(self, model)

    @functools.wraps(list_models)
    def list_more(scope=None, patterns=r'.*'):
        more = [name for name in list_names(scope) if re.match(patterns, name)]
        return list_models(scope, patterns) + more

    base._load_model_from_metafile = load_more
    base.list_models = staticmethod(list_more)
