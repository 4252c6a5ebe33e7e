"""Memory that a process has freed and will soon want again."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

# Bytes of the largest block that is kept, and of free memory at the end of the heap. A training has its process for
# itself; a predictor lives in somebody else's, where blocks go as far as glibc may raise its own limit.
TRAINING = (2**30, 2**30)
PREDICTION = (2**25, 2**28)

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# An old glibc takes no higher limit for blocks.
_BLOCK_OF_OLD_GLIBC = 2**25
# Environment variables of glibc by which its user has chosen, and what stands in the third one then.
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
_TUNABLES = ("glibc.malloc.trim_threshold", "glibc.malloc.mmap_threshold")

_highest = [0, 0]


def keep_freed_memory(block_bytes: int, total_bytes: int) -> bool:
    """Lets glibc keep memory that was freed, for the whole process and those that it forks, from now on.

    By default glibc gives the end of its heap, and large blocks, back to the system as soon as they are free. A network
    on the CPU frees and wants the same hundred megabytes at every step, and the system clears each page of them every
    time: `benchmarks/freed_memory.py` measures what that costs. In exchange the process stays as large as it has been
    at its largest, or larger where something small that is still in use lies above what is free. Threads other than the
    first take blocks of 32 MiB and more from the system as before.

    Args:
        block_bytes: Size, below 2 ** 31, from which a block is still taken from the system and given back at once.
        total_bytes: Free memory at the end of the heap, below 2 ** 31, from which it is given back.

    Returns:
        Whether glibc has taken it. Not so where its environment variables set one of the two, or another C library is
        in use. What was set here before is never lowered.
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
    """Gives memory that is free now back to the system, where glibc is in use."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Callable[..., int] | None:
    """A function of the C library, None where that is not glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
