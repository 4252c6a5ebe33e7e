"""Checkpoints on the disk: whole or not there at all, and an error before the training where they cannot fit."""

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

# What the system answers where a file cannot be written.
WRITE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
}  # fmt: skip
# A checkpoint for use holds float32 weights, last.ckpt also their average, and two moments of AdamW.
BYTES_PER_PARAMETER = 4
COPIES_IN_LAST = 4


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the former one and then takes its place.

    Lightning's own way leads through the folder for temporary files, which is often on another disk: then the file is
    copied, and half a checkpoint is left where that is interrupted.
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
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # somebody may have taken it away since the start
        write_atomic(Path(path), stream.getvalue())


def check_space(folder: RunFolder, detector: nn.Module, save_top_k: int) -> None:
    """Checks that the disk has room for the checkpoints of a training.

    Args:
        folder: Folder of the run, which exists.
        detector: What is trained.
        save_top_k: Number of best checkpoints that are kept; -1 for all, whose number is not known.

    Raises:
        InputError: If there is less free space than they take.
    """
    size = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in detector.parameters())
    for_use = 1 + (save_top_k if save_top_k > 1 else 0)
    needed = (for_use + 2 * COPIES_IN_LAST) * size  # the next last.ckpt is written beside the former one
    there = sum(path.stat().st_size for path in folder.checkpoints.glob("*.ckpt"))
    free = shutil.disk_usage(folder.checkpoints).free
    if free + there < needed:
        raise InputError(
            f"--run_dir {folder.path}: {free / 1e6:.1f} MB are free there, expected at least "
            f"{(needed - there) / 1e6:.1f} MB for checkpoints"
        )


def explain_write_error(error: BaseException, folder: RunFolder) -> InputError | None:
    """Says in one line what could not be written, and what there is to go on with; None for errors of another kind."""
    if not isinstance(error, OSError) or error.errno not in WRITE_ERRORS:
        return None
    last = folder.checkpoints / "last.ckpt"
    goes_on = f"{last} is whole: the same flags with --resume {folder.path} go on from it"
    kept = goes_on if last.exists() else "no checkpoint was written"
    return InputError(f"{error.filename or folder.path} cannot be written: {error.strerror}. {kept}")


def explain_lost_image(error: BaseException, folder: RunFolder) -> InputError | None:
    """Says in one line which image cannot be read any more, and what goes on; None for errors of another kind."""
    if not isinstance(error, ImageError):
        return None
    last = (folder.checkpoints / "last.ckpt").exists()
    goes_on = f"; once it can be read, the same flags with --resume {folder.path} go on" if last else ""
    return InputError(f"{error}; with --corrupt_images skip a training does without such an image{goes_on}")


def explain_lost_process(error: BaseException, folder: RunFolder) -> InputError | None:
    """Says in one line that another process has ended, and what goes on; None for errors of another kind."""
    if not isinstance(error, RuntimeError) or not re.search("gloo.*(by peer|Broken pipe)", str(error), re.DOTALL):
        return None
    last = (folder.checkpoints / "last.ckpt").exists()
    goes_on = f"; the same flags with --resume {folder.path} go on" if last else ""
    return InputError(f"another process of the training has ended, as where the memory does not suffice{goes_on}")
