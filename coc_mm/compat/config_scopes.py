"""Configs of installed packages by scope: ``_base_ = ['mmseg::...']``, ``['coc_mm::...']``.

mmengine turns the scope into the name of a distribution, which it asks pip's records for: for
``mmseg`` that of ``mmsegmentation``, which its maintained release is not called, and for packages
outside of OpenMMLab none at all. Where no distribution has the name it takes the module's folder.
"""

from types import ModuleType


def add_scopes(module: ModuleType) -> None:
    """Let ``mmengine.config.utils`` find mmseg and coc_mm by the names of their modules."""
    module.MODULE2PACKAGE.update(mmseg='mmseg', coc_mm='coc_mm')
