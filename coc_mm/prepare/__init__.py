"""Data sets fetched, verified and unpacked into the layout that the configs expect."""

from coc_mm.prepare.archives import Entry, Limits, PrepareError, read_tar, read_zip, unpack
from coc_mm.prepare.download import download, verify
from coc_mm.prepare.recipes import RECIPES, Archive, Part, Recipe
from coc_mm.prepare.tree import find_lacking, prepare

__all__ = [
    'RECIPES',
    'Archive',
    'Entry',
    'Limits',
    'Part',
    'PrepareError',
    'Recipe',
    'download',
    'find_lacking',
    'prepare',
    'read_tar',
    'read_zip',
    'unpack',
    'verify',
]
