"""Context-Cluster backbones for mmpretrain, mmdet and mmseg.

Importing the package is cheap and imports none of the three task libraries:
models, datasets and hooks are found through :mod:`coc_mm.registry` when a
config names them. It also makes mmdet importable where mmcv was installed
without its compiled operators, so import it before mmdet, and gives the
libraries' inferencers the names of our models (:mod:`coc_mm.apis.model_zoo`).
"""

from coc_mm import compat
from coc_mm.compat import on_import
from coc_mm.version import __version__


def _register_model_zoo(module):
    from coc_mm.apis.model_zoo import register_model_zoo

    register_model_zoo(module)


def _read_safetensors(module):
    # mmengine reads the weights alone; ours carry config and class names in the header.
    def load_from_local_safely(filename, map_location=None):
        # While mmengine's module is being imported nothing that needs it can be.
        from coc_mm.checkpoints.load import load_checkpoint_safely

        return load_checkpoint_safely(filename, map_location)

    module.CheckpointLoader.register_scheme(
        prefixes=r'(?!\w+:)[^?]*\.safetensors$', loader=load_from_local_safely, force=True
    )


def _fetch_by_name(module):
    def load_from_coc_mm(filename, map_location=None):
        from coc_mm.apis.published import load_by_name

        return load_by_name(filename, map_location)

    module.CheckpointLoader.register_scheme('coc_mm://', load_from_coc_mm, force=True)


def _rename_official_weights(module):
    # Imported when weights are loaded: coc_mm.checkpoints needs the backbone.
    def rename(state_dict, prefix, metadata):
        from coc_mm.checkpoints.official import rename_before_loading

        rename_before_loading(state_dict, prefix, metadata)

    module.ContextCluster.state_dict_converters.append(rename)


def _load_pretrained_safely(module):
    original = module.PretrainedInit.__call__

    def load(self, target):
        from coc_mm.checkpoints.pretrained import load_pretrained

        load_pretrained(self, target, original)

    module.PretrainedInit.__call__ = load


compat.install()
on_import('mmengine.runner.checkpoint', _read_safetensors)
on_import('mmengine.runner.checkpoint', _fetch_by_name)
on_import('mmengine.infer.infer', _register_model_zoo)
on_import('mmpretrain.apis.model', _register_model_zoo)
on_import('mmengine.model.weight_init', _load_pretrained_safely)
on_import('coc_mm.models.backbones.context_cluster', _rename_official_weights)

__all__ = ['__version__']
