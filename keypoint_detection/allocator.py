"""Memory that a process has freed and will soon need again."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

# `block_bytes` and `total_bytes` of `keep_freed_memory`. A training run has its process to itself. A predictor lives in
# someone else's, so its limit for blocks is the highest that glibc may choose by itself.
TRAINING = (2**30, 2**30)
PREDICTION = (2**25, 2**28)

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# The highest limit for blocks that an old glibc accepts.
_BLOCK_OF_OLD_GLIBC = 2**25
# Environment variables with which users set these limits themselves, and how they are named in GLIBC_TUNABLES.
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
_TUNABLES = ("glibc.malloc.trim_threshold", "glibc.malloc.mmap_threshold")

_highest = [0, 0]


def keep_freed_memory(block_bytes: int, total_bytes: int) -> bool:
    """Makes glibc keep freed memory from now on, in this process and in those that it forks.

    By default, glibc returns large blocks and the end of its heap to the system as soon as they are free. A network on
    the CPU frees and allocates the same hundred megabytes at every step, and the system clears each of their pages
    every time: `benchmarks/freed_memory.py` measures what that costs. In exchange, the process stays as large as it
    ever was, or larger if a small block that is still in use lies above free memory. Threads other than the first still
    take blocks of 32 MiB or more from the system.

    Args:
        block_bytes: Blocks of at least this size are still taken from the system and returned at once; below 2 ** 31.
        total_bytes: Free memory at the end of the heap is returned once there is this much of it; below 2 ** 31.

    Returns:
        Whether glibc accepted both limits. It is False if its environment variables set one of them, or if another C
        library is in use. Limits that were set here before are never lowered.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in _VARIABLES) or any(name in tunables for name in _TUNABLES):
        return False
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    block_bytes, total_bytes = max(block_bytes, _highest[0]), max(total_bytes, _highest[1])
    if not mallopt(_M_MMAP_THRESHOLD, block_bytes) and not mallopt(_M_MMAP_THRESHOLD, _BLOCK_OF_OLD_GLIBC):
        return False
    _highest[:] = block_bytes, total_bytes
    return bool(mallopt(_M_TRIM_THRESHOLD, total_bytes))


def give_back_freed_memory() -> None:
    """Returns memory that is free now to the system, if glibc is in use."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Callable[..., int] | None:
    """A function of the C library, None if that is not glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
