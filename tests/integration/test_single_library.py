"""Whoever has one of the three task libraries can use that one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from one_library import LIBRARIES, TOOLS

SCRIPT = Path(__file__).with_name('one_library.py')


@pytest.mark.parametrize('library', LIBRARIES)
def test_one_library_is_enough(library, tmp_path):
    pytest.importorskip(library)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', SCRIPT, library, '--hide'],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(SCRIPT.parents[2])},
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(TOOLS) >= 11
    said = f'{library} alone: backbone, model, {len(TOOLS)} tools, 2 refusals'
    assert done.stdout.splitlines()[-1] == said
