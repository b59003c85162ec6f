"""Fetch, verify and unpack public data sets into the layout that the configs expect."""

from coc_mm.prepare.archives import Entry, read_archive, unpack
from coc_mm.prepare.recipes import RECIPES, Archive, Part, Recipe
from coc_mm.prepare.tree import find_lacking, prepare
