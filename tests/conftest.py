import os
from pathlib import Path

import pytest
import torch

import coc_mm  # noqa: F401  before mmdet, see coc_mm.compat

# Tests are many small problems; more threads than cores only make them wait.
os.environ.setdefault('MPLBACKEND', 'Agg')

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / 'tests' / 'data' / 'golden'


@pytest.fixture(scope='session', autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('COC_MM_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
