"""Pytest plugin for mutation runs: nothing of the unchanged code is left, the quickest test first.

mutmut imports once and forks a process per mutant. The backends' wrapper runs at import, before
a mutant is switched on, so its mutants would look alive.
"""

import json
from pathlib import Path

from coc_mm.ops.context_cluster import fused, interface, reference, regions

STATS = Path('mutmut-stats.json')


def pytest_configure(config):
    regions._cached_axis.cache_clear()
    for name, module in (('fused', fused), ('reference', reference)):
        _, can_run = interface._BACKENDS[name]
        interface._BACKENDS[name] = (interface._in_pytorch(module.forward), can_run)


def pytest_collection_modifyitems(items):
    seconds = json.loads(STATS.read_text())['duration_by_test'] if STATS.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0))
