"""Data sets fetched, verified and unpacked into the layout that the configs expect."""

from coc_mm.datasets.prepare.archives import Entry, Limits, PrepareError, read_tar, read_zip, unpack
from coc_mm.datasets.prepare.command import run_prepare
from coc_mm.datasets.prepare.download import download, verify
from coc_mm.datasets.prepare.recipes import RECIPES, Archive, Part, Recipe
from coc_mm.datasets.prepare.tree import find_lacking, prepare

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
    'run_prepare',
    'unpack',
    'verify',
]
