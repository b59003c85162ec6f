"""Our names of models in the libraries' own inferencers, once these are imported."""

import functools
import re
from types import ModuleType

from coc_mm.apis.model_zoo import apply_record, config_of, entries, zoo_root

__all__ = ['teach_mmengine', 'teach_mmpretrain']


def _own(scope: str | None) -> dict:
    """Entries of one library by lower-case name; those of all for None."""
    return {n.lower(): e for n, e in entries().items() if scope in (None, e.scope)}


def teach_mmengine(module: ModuleType) -> None:
    """Let ``DetInferencer`` and ``MMSegInferencer`` find our models.

    Their base class reads the metafiles of the library's own package only. A name of
    ours without weights given takes ``checkpoints/NAME.pth`` where that exists.

    Args:
        module (ModuleType): ``mmengine.infer.infer``.
    """
    base = module.BaseInferencer
    load, list_models = base._load_model_from_metafile, base.list_models
    if hasattr(load, '__wrapped__'):
        return

    @functools.wraps(load)
    def load_with_ours(self, model):
        entry = _own(self.scope).get(model.lower())
        if entry is None:
            return load(self, model)
        config, weights = config_of(entry.name), entry.weights
        if weights is not None:
            from coc_mm.checkpoints.pretrained import read_checkpoint

            apply_record(config, read_checkpoint(weights))
        return config, weights

    @functools.wraps(list_models)
    def list_with_ours(scope=None, patterns=r'.*'):
        found = list_models(scope, patterns)
        return found + [e.name for e in _own(scope).values() if re.match(patterns, e.name)]

    base._load_model_from_metafile = load_with_ours
    base.list_models = staticmethod(list_with_ours)


def teach_mmpretrain(module: ModuleType) -> None:
    """Register our classifiers with mmpretrain's hub of models.

    Args:
        module (ModuleType): ``mmpretrain.apis.model``.
    """
    root = zoo_root()
    if not _own('mmpretrain').keys() & module.ModelHub._models_dict.keys():
        module.ModelHub.register_model_index(
            root / 'configs' / 'classification' / 'metafile.yml', config_prefix=root
        )
