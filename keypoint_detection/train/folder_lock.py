"""Keeps a second training out of the folder of a run while one writes there."""

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
except ImportError:  # as on Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
# The number of a process that MPI has started, which Lightning does not know before it has a Trainer.
_NUMBERS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")


class FolderLock:
    """A lock of a run's folder, held by the first process of a training; a context that gives it back.

    It is one of POSIX, which belongs to a process: the kernel takes it back when that ends, however it does. One of
    `flock` would belong to what is open: workers that load images are forked and keep that open, and live on for some
    seconds after a kill of the training, which is to go on at once. It is lost when the process closes the file, which
    nothing else may open therefore. There is none where the platform or the file system has no such locks.
    """

    def __init__(self) -> None:
        self._file: tuple[Path, int] | None = None

    def __enter__(self) -> FolderLock:
        """Holds nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Gives it back."""
        if self._file is not None:
            path, descriptor = self._file
            self._file = None
            with contextlib.suppress(OSError):
                path.unlink()  # before it is free, or the file of the next one would go
            os.close(descriptor)

    def take(self, folder: Path) -> None:
        """Takes it, unless it is held already or there is no such folder.

        Args:
            folder: Folder of the run.

        Raises:
            InputError: If another process holds it.
        """
        if fcntl is None or self._file is not None or not _is_first_process():
            return
        path = folder.absolute() / LOCK_FILE
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # no folder yet, or none that can be written to, which is told where it is made
            return
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # one or the other, says POSIX
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise InputError(f"{folder}: another training is writing there{_who(holder, path)}") from error
        except OSError as error:
            logger.debug("%s: no lock: %s", path, error)
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return
        if not _is_file_of(descriptor, path):  # its holder has just ended, and the next one may have made it anew
            os.close(descriptor)
            self.take(folder)
            return
        self._file = (path, descriptor)
        with contextlib.suppress(OSError):  # e.g. a full disk
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {platform.node()}".encode())


def _is_file_of(descriptor: int, path: Path) -> bool:
    """Whether the file that is open is the one that is there, and not one that was removed since."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _who(holder: str, path: Path) -> str:
    """Says which process it is, from what that has written."""
    number, _, machine = holder.partition(" ")
    if not number:
        return ""
    if machine == platform.node():
        return f" (process {number})"
    # Some file systems keep the lock of a machine that is gone.
    return f" (process {number} of {machine}; if that is gone, remove {path})"


def _is_first_process() -> bool:
    """Whether this is the first of all processes of a training."""
    return is_rank_zero() and all(os.environ.get(name, "0") == "0" for name in _NUMBERS)
