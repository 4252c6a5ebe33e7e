"""Keeps a second training run out of a run's folder while one writes there."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from pathlib import Path

from keypoint_detection.errors import InputError
from keypoint_detection.train.wandb_connection import is_rank_zero

try:
    import fcntl
except ImportError:  # for example on Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
# The rank of a process that MPI has started, which Lightning does not know before it has a Trainer.
_NUMBERS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")


class FolderLock:
    """A lock on a run's folder, held by the first process of a training run; a context manager that releases it.

    It is a POSIX lock, which belongs to a process: the kernel releases it when the process ends, for whatever reason. A
    `flock` would belong to the open file. Forked workers that load images keep that open, and live on for some seconds
    after the training process is killed, but it must be possible to resume at once. A POSIX lock is lost as soon as the
    process closes the file anywhere, so nothing else may open it. If the platform or the file system has no such locks,
    the folder is not locked.
    """

    def __init__(self) -> None:
        self._file: tuple[Path, int] | None = None

    def __enter__(self) -> FolderLock:
        """Enters the context; no lock is held yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Releases the lock."""
        if self._file is not None:
            path, descriptor = self._file
            self._file = None
            with contextlib.suppress(OSError):
                path.unlink()  # before the release, or it might be the file of the next holder
            os.close(descriptor)

    def take(self, folder: Path) -> None:
        """Takes the lock, unless it is held already or there is no such folder.

        Args:
            folder: Folder of the run.

        Raises:
            InputError: If another process holds the lock.
        """
        if fcntl is None or self._file is not None or not _is_first_process():
            return
        path = folder.absolute() / LOCK_FILE
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # no folder yet, or a read-only one, which `RunFolder.make` reports
            return
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # POSIX allows either
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise InputError(f"{folder}: another training run is writing there{_who(holder, path)}") from error
        except OSError as error:
            logger.debug("%s: no lock: %s", path, error)
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return
        if not _is_file_of(descriptor, path):  # its holder has just ended, and the next one may have created a new file
            os.close(descriptor)
            self.take(folder)
            return
        self._file = (path, descriptor)
        with contextlib.suppress(OSError):  # e.g. a full disk
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {platform.node()}".encode())


def _is_file_of(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at this path, and has not been removed since."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _who(holder: str, path: Path) -> str:
    """Names the process that holds the lock, from what it has written to the file."""
    number, _, machine = holder.partition(" ")
    if not number:
        return ""
    if machine == platform.node():
        return f" (process {number})"
    # Some file systems keep the lock of a machine that has disappeared.
    return f" (process {number} on {machine}; if it no longer runs, remove {path})"


def _is_first_process() -> bool:
    """Whether this is the first of all processes of a training run."""
    return is_rank_zero() and all(os.environ.get(name, "0") == "0" for name in _NUMBERS)
