"""Memory: how much was in use; and freed memory is kept instead of given back to the system at every step.

glibc maps blocks above a threshold anew each time; a training step then pays page faults for every large activation.
"""

import ctypes
import resource
import sys
from pathlib import Path

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
KEEP = 2**30 + 2**29  # bytes


def keep_large_blocks() -> None:
    """Raise the allocator's thresholds for this process; where the C library is another, nothing changes."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(MMAP_THRESHOLD, KEEP)
        libc.mallopt(TRIM_THRESHOLD, KEEP)


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use: on the GPU by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (status := Path("/proc/self/status")).is_file():  # the system's other figure holds the parent process's, too
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
