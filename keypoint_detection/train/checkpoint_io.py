"""Checkpoints on disk: written whole or not at all, with an error before training if they do not fit."""

from __future__ import annotations

import errno
import io
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from keypoint_detection.errors import ImageError, InputError
from keypoint_detection.files import write_atomic
from keypoint_detection.train.run_folder import RunFolder

# Error numbers of the system when a file cannot be written.
WRITE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
}  # fmt: skip
# A checkpoint for use holds float32 weights. last.ckpt also holds their average and the two moments of AdamW.
BYTES_PER_PARAMETER = 4
COPIES_IN_LAST = 4


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a file beside the previous one, then replaces that one.

    Lightning goes through the folder for temporary files, which is often on another disk. The file is then copied, and
    an interruption leaves half a checkpoint behind.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: What Lightning saves.
            path: The file.
            storage_options: Not used.
        """
        stream = io.BytesIO()
        torch.save(checkpoint, stream)
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # it may have been deleted since the start
        write_atomic(Path(path), stream.getvalue())


def check_space(folder: RunFolder, detector: nn.Module, save_top_k: int) -> None:
    """Checks that the disk has room for the checkpoints of a training run.

    Args:
        folder: Folder of the run, which has to exist.
        detector: The detector to train.
        save_top_k: Number of best checkpoints to keep; -1 keeps all, and since their number is unknown, they are not
            counted.

    Raises:
        InputError: If there is less free space than they take.
    """
    size = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in detector.parameters())
    for_use = 1 + (save_top_k if save_top_k > 1 else 0)
    needed = (for_use + 2 * COPIES_IN_LAST) * size  # the next last.ckpt is written beside the previous one
    there = sum(path.stat().st_size for path in folder.checkpoints.glob("*.ckpt"))
    free = shutil.disk_usage(folder.checkpoints).free
    if free + there < needed:
        raise InputError(
            f"--run_dir {folder.path}: only {free / 1e6:.1f} MB of disk space are free, expected at least "
            f"{(needed - there) / 1e6:.1f} MB for checkpoints"
        )


def explain_write_error(error: BaseException, folder: RunFolder) -> InputError | None:
    """Explains in one line what could not be written, and what to resume from; None for other kinds of errors."""
    if not isinstance(error, OSError) or error.errno not in WRITE_ERRORS:
        return None
    last = folder.checkpoints / "last.ckpt"
    advice = f"{last} is intact: resume from it with the same flags and --resume {folder.path}"
    kept = advice if last.exists() else "no checkpoint was written"
    return InputError(f"{error.filename or folder.path} cannot be written: {error.strerror}. {kept}")


def explain_lost_image(error: BaseException, folder: RunFolder) -> InputError | None:
    """Explains in one line which image can no longer be read, and what to do; None for other kinds of errors."""
    if not isinstance(error, ImageError):
        return None
    last = (folder.checkpoints / "last.ckpt").exists()
    advice = f"; once it can be read, resume with the same flags and --resume {folder.path}" if last else ""
    return InputError(f"{error}; --corrupt_images skip trains without such images{advice}")


def explain_lost_process(error: BaseException, folder: RunFolder) -> InputError | None:
    """Explains in one line that another process has ended, and what to do; None for other kinds of errors."""
    if not isinstance(error, RuntimeError) or not re.search("gloo.*(by peer|Broken pipe)", str(error), re.DOTALL):
        return None
    last = (folder.checkpoints / "last.ckpt").exists()
    advice = f"; resume with the same flags and --resume {folder.path}" if last else ""
    return InputError(f"another process of the training run has ended, perhaps for lack of memory{advice}")
