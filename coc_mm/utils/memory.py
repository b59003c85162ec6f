"""Peak memory of a process."""

from pathlib import Path

import torch

_CLEAR = Path('/proc/self/clear_refs')


class PeakMemory:
    """Peak memory of a GPU's allocator, or on Linux resident memory beyond that at the start."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Forget earlier peaks."""
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _CLEAR.exists():
            self._before = _status('VmRSS')
            _CLEAR.write_text('5')

    def peak(self) -> float | None:
        """Return MiB, or None where the system does not tell."""
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return (_status('VmHWM') - self._before) / 1024 if _CLEAR.exists() else None


def _status(key: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
