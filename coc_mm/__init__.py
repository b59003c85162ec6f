"""Context-Cluster backbones for mmpretrain, mmdet and mmseg.

Importing the package is cheap and imports none of the three task libraries:
models, datasets and hooks are found through :mod:`coc_mm.registry` when a
config names them. It also makes mmdet importable where mmcv was installed
without its compiled operators, so import it before mmdet.
"""

from coc_mm import compat
from coc_mm.version import __version__

compat.install()

__all__ = ['__version__']
