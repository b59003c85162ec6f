"""What the ecosystem lacks, one file per gap, each with its reason."""

from coc_mm.compat.mmcv_ext import install

__all__ = ['install']
