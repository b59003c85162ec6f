import importlib.util
import sys

import mmcv.ops  # noqa: F401
import pytest
from tool_fixtures import fresh_singletons, one_process, projects, run  # noqa: F401

from coc_mm.compat.mmcv_ext import _FINDER


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in, in use by mmcv.ops even where mmcv has been compiled."""
    module = importlib.util.module_from_spec(_FINDER.find_spec('mmcv._ext'))
    module.__spec__.loader.exec_module(module)
    patched = 0
    for name, user in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(user, 'ext_module'):
            monkeypatch.setattr(user, 'ext_module', module)
            patched += 1
    assert patched > 40
    return module
