"""Whoever has one of the three task libraries can use that one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from one_library import LIBRARIES, TOOLS

SCRIPT = Path(__file__).with_name('one_library.py')


def test_there_are_libraries_and_tools():
    assert len(LIBRARIES) == 3
    assert len(TOOLS) >= 11


@pytest.mark.parametrize('library', LIBRARIES)
def test_one_library_is_enough(library, tmp_path):
    pytest.importorskip(library)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', SCRIPT, library, '--hide'],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == (
        f'{library} alone: backbone, model, {len(TOOLS)} tools, 2 refusals'
    )
