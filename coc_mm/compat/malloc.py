"""Keeping freed memory on CPUs.

glibc returns large freed blocks to the system at once. The next step of a training asks
for the same sizes again, and the system zeroes and maps every page anew: on a CPU that is
up to a third of a step. Devices with memory of their own have PyTorch's caching allocator
instead.
"""

import ctypes
import platform

from mmengine.device import get_device

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next step, where there is no accelerator.

    The process stays as large as it once was: for a process that trains and ends.

    Returns:
        bool: Whether it was told, and understood: False with an accelerator, or where the
        C library is not glibc.
    """
    if get_device() != 'cpu' or platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena: blocks freed by the backward pass's thread serve the forward pass.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
