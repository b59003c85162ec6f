"""Train and test all three tasks on embedded data: what ``tools/quickstart.py`` runs."""

from coc_mm.cli.quickstart import parse_quickstart, run_quickstart

__all__ = ['parse_quickstart', 'run_quickstart']
