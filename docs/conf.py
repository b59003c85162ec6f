"""Sphinx configuration of ``make docs``; sources are the pages of the whole project."""

from coc_mm.version import __version__

project = 'coc_mm'
author = 'The authors of coc_mm'
release = version = __version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton']
html_theme = 'furo'
html_title = f'coc_mm {release}'
root_doc = 'docs/index'
include_patterns = [
    '*.md',
    'docs/**',
    'benchmarks/README.md',
    'projects/README.md',
    'projects/*/README.md',
]
exclude_patterns = ['docs/_build']
myst_heading_anchors = 3
autodoc_typehints = 'none'  # the signatures stay readable; docstrings tell types
