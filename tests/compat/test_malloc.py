"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest
import torch

CODE = """
import resource, torch
from coc_mm.compat.malloc import keep_freed_memory
assert {wanted} is False or keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    for _ in range(20):
        torch.empty(10_000_000).fill_(1)
step()
before = faults()
step()
print(faults() - before)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason='an accelerator has an allocator')
@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='a matter of glibc')
def test_the_second_step_asks_for_no_new_pages():
    faults = [
        int(subprocess.check_output([sys.executable, '-W', 'ignore', '-c', CODE.format(wanted=w)]))
        for w in (False, True)
    ]
    assert faults[0] > 10 * max(faults[1], 1)


def test_other_libraries_are_left_alone(monkeypatch):
    from coc_mm.compat.malloc import keep_freed_memory

    monkeypatch.setattr(platform, 'libc_ver', lambda: ('musl', '1.2'))
    assert keep_freed_memory() is False
