"""Keep freed memory on CPUs.

glibc returns large freed blocks to the system at once, and the next step of a training asks for
the same sizes again: zeroing and mapping the pages is up to a third of a step. Accelerators have
PyTorch's caching allocator instead.
"""

import ctypes
import platform

from mmengine.device import get_device

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory, for a process that trains and ends; return whether it does.

    False with an accelerator, or where the C library is not glibc.
    """
    if get_device() != 'cpu' or platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena: blocks freed by the backward pass's thread serve the forward pass.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
