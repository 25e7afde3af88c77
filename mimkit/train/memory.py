"""Keep freed memory instead of giving it back to the system at every step.

glibc maps blocks above a threshold anew each time; a training step then pays page faults for every large activation.
"""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
KEEP = 2**30 + 2**29  # bytes


def keep_large_blocks() -> None:
    """Raise the allocator's thresholds for this process; where the C library is another, nothing changes."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(MMAP_THRESHOLD, KEEP)
        libc.mallopt(TRIM_THRESHOLD, KEEP)
