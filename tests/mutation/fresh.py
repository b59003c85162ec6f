"""Pytest plugin for mutation runs: nothing of the unchanged code is left, the quickest test first.

mutmut imports once and forks a process per mutant, which runs the tests that went through the
changed function. What is done once, at import or by whichever test comes first, is done for
each test here: its mutants would look alive otherwise.
"""

import json
from pathlib import Path

from coc_mm.ops import functional as interface
from coc_mm.ops import regions
from coc_mm.ops.backends import matmul as fused
from coc_mm.ops.backends import reference

STATS = Path('mutmut-stats.json')


def pytest_runtest_setup(item):
    regions._cached_layout.cache_clear()
    for name, module in (('fused', fused), ('reference', reference)):
        _, can_run = interface._BACKENDS[name]
        interface._BACKENDS[name] = (interface._in_float32(module.forward), can_run)


def pytest_collection_modifyitems(items):
    seconds = json.loads(STATS.read_text())['duration_by_test'] if STATS.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0))
