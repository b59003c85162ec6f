import mmap
from pathlib import Path

import pytest
import torch

from coc_mm.utils.memory import PeakMemory


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='Linux alone tells')
def test_what_is_gone_again_counts_until_the_peak_is_forgotten():
    memory = PeakMemory(torch.device('cpu'))
    with mmap.mmap(-1, 32 * 2**20) as fresh:  # torch may have as much left of earlier tests
        fresh.write(b'1' * len(fresh))
    assert 31 < memory.peak() < 64
    memory.start()
    assert memory.peak() < 16
