"""Actions on modules of other libraries."""

import importlib
import sys

from coc_mm.compat.on_import import on_import


def test_actions_run_once_after_the_import(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'acted_on.py').write_text('value = 1\n')
    seen = []
    for name in ('first', 'second'):
        on_import('acted_on', lambda module, name=name: seen.append((name, module.value)))
    assert 'acted_on' not in sys.modules
    module = importlib.import_module('acted_on')
    assert module.__loader__.get_source('acted_on') == 'value = 1\n'
    assert seen == [('first', 1), ('second', 1)]
    on_import('acted_on', lambda module: seen.append(module))
    assert seen[2:] == [module]


def test_a_module_that_does_not_exist_stays_missing():
    on_import('no_such_module_at_all', print)
    assert importlib.util.find_spec('no_such_module_at_all') is None
