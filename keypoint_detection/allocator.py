"""Memory that a process has freed and will soon want again."""

from __future__ import annotations

import ctypes
import os
import sys

# What a training and what a predictor, which lives in somebody else's process, keeps at most.
TRAINING_BYTES = 2**30
PREDICTION_BYTES = 2**28

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# The largest block that every glibc takes from the heap, and not from the system.
_SMALLEST_LIMIT = 2**25


def keep_freed_memory(most_bytes: int) -> bool:
    """Lets the C library keep memory that was freed, for the whole process.

    By default glibc gives the end of its heap, and large blocks, back to the system as soon as they are free. A network
    on the CPU frees and wants the same hundred megabytes at every step, and the system clears each page of them every
    time: without that, training takes 10 to 20 % less time (benchmarks/README.md). Who has chosen otherwise by
    an environment variable of glibc is left alone, and so is another C library.

    Args:
        most_bytes: How much free memory at the end of the heap is kept, and the size in bytes from which a block is
            still taken from the system and given back.

    Returns:
        Whether anything was changed.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return False
    # An old glibc refuses the larger size for blocks, and then keeps its own.
    blocks = mallopt(_M_MMAP_THRESHOLD, most_bytes) or mallopt(_M_MMAP_THRESHOLD, min(most_bytes, _SMALLEST_LIMIT))
    return bool(blocks and mallopt(_M_TRIM_THRESHOLD, most_bytes))
