"""Processes that are of no use without the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# The process id of the first of a machine's processes, for those that it starts.
FIRST_PROCESS = "KEYPOINT_DETECTION_FIRST_PROCESS"


def end_with_parent() -> None:
    """Asks Linux to end this process by SIGTERM when the one that started it ends, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_first_process(is_first: bool) -> None:
    """Ends this process with the first one where that has started it, and not a launcher or a shell of the user's.

    One that starts would else wait for the first process for half an hour, or for days.

    Args:
        is_first: Whether this is the first of its machine's processes.
    """
    if is_first:
        os.environ[FIRST_PROCESS] = str(os.getpid())
    elif os.environ.get(FIRST_PROCESS) == str(os.getppid()):
        end_with_parent()
