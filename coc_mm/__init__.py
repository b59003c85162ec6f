"""Context-Cluster backbones for mmpretrain, mmdet and mmseg.

Importing the package is cheap and imports none of the three task libraries:
models, datasets and hooks are found through :mod:`coc_mm.registry` when a
config names them. It also makes mmdet importable where mmcv was installed
without its compiled operators, so import it before mmdet, and gives the
libraries' inferencers the names of our models (:mod:`coc_mm.apis.model_zoo`).
"""

from coc_mm import compat
from coc_mm.compat.on_import import on_import
from coc_mm.version import __version__


def _know_names_in_mmengine(module):
    from coc_mm.apis.library_names import teach_mmengine

    teach_mmengine(module)


def _know_names_in_mmpretrain(module):
    from coc_mm.apis.library_names import teach_mmpretrain

    teach_mmpretrain(module)


def _read_safetensors(module):
    # mmengine reads the weights alone; ours carry config and class names in the header.
    def load_from_local_safely(filename, map_location=None):
        # While mmengine's module is being imported nothing that needs it can be.
        from coc_mm.checkpoints.load import load_checkpoint_safely

        return load_checkpoint_safely(filename, map_location)

    module.CheckpointLoader.register_scheme(
        prefixes=r'(?!\w+:)[^?]*\.safetensors$', loader=load_from_local_safely, force=True
    )


compat.install()
on_import('mmengine.runner.checkpoint', _read_safetensors)
on_import('mmengine.infer.infer', _know_names_in_mmengine)
on_import('mmpretrain.apis.model', _know_names_in_mmpretrain)

__all__ = ['__version__']
