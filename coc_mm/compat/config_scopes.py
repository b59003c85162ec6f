"""Configs of installed packages by scope: ``_base_ = ['mmseg::...']``, ``['coc_mm::...']``.

mmengine turns the scope into the name of a distribution, which it asks pip's records for: for
``mmseg`` that of ``mmsegmentation``, which its maintained release is not called, and for packages
outside of OpenMMLab none at all. Where no distribution has the name it takes the module's folder.
Then it has everything that a base describes built in the base's scope: in ours nothing but the
backbone is, since configs of ours belong to the library that their ``default_scope`` names.
"""

from types import ModuleType


def add_scopes(module: ModuleType) -> None:
    """Let ``mmengine.config.utils`` find mmseg and coc_mm by the names of their modules."""
    module.MODULE2PACKAGE.update(mmseg='mmseg', coc_mm='coc_mm')


def keep_default_scope(module: ModuleType) -> None:
    """Let ``mmengine.config.config`` leave the scope of our configs as they set it."""
    find = module.Config._get_cfg_path

    def find_without_ours(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = find(cfg_path, filename)
        return path, None if scope == 'coc_mm' else scope

    module.Config._get_cfg_path = staticmethod(find_without_ours)
