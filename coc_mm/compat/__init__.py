"""What the ecosystem lacks, one file per gap, each with its reason."""

from coc_mm.compat.config_scopes import add_scopes
from coc_mm.compat.mmcv_ext import install as install_mmcv_ext
from coc_mm.compat.on_import import on_import
from coc_mm.compat.transformers5 import leave_out_multimodal

__all__ = ['install']


def install() -> None:
    """Mend the libraries, each when it is imported; costs nothing before."""
    install_mmcv_ext()
    on_import('mmengine.config.utils', add_scopes)
    on_import('mmpretrain.utils.dependency', leave_out_multimodal)
