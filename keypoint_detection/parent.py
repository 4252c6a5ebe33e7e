"""Ends processes when the process that started them ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# Environment variable with the id of a machine's first process, for the processes that it starts.
FIRST_PROCESS = "KEYPOINT_DETECTION_FIRST_PROCESS"


def end_with_parent() -> None:
    """Asks Linux to send this process SIGTERM when the one that started it ends, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_first_process(is_first: bool) -> None:
    """Makes this process end with the first one, if that started it, rather than a launcher or the user's shell.

    Otherwise, a process that is just starting would wait for the first one for half an hour, or even days.

    Args:
        is_first: Whether this is its machine's first process.
    """
    if is_first:
        os.environ[FIRST_PROCESS] = str(os.getpid())
    elif os.environ.get(FIRST_PROCESS) == str(os.getppid()):
        end_with_parent()
