"""Stops a training run whose loss is NaN or infinite, before it corrupts the weights."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from keypoint_detection.batch import Batch
from keypoint_detection.errors import InputError
from keypoint_detection.files import write_atomic

logger = logging.getLogger(__name__)

NAMES_SHOWN = 3


class StopAtBadLoss(pl.Callback):
    """Stops at a loss that is NaN or infinite, and saves the batch that caused it.

    The weights are not updated with it, and existing checkpoints stay as they are.

    Args:
        folder: Where to save `bad_batch.pt`, or `bad_batch-<rank>.pt` with several processes. `torch.load` reads it. It
            holds the fields of the batch by name (see `Batch`), the `paths` of its images (None for a blank image),
            `loss`, `epoch` and `step`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batch: Batch | None = None
        self._loss: Tensor | None = None
        # Whether the loss is bad here, and in how many processes. On a GPU, the event says when both have been copied.
        self._is_bad: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, *_: Any) -> None:
        """Remembers the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Checks the loss, without waiting for the GPU to compute it."""
        self._loss = loss.detach()
        is_bad = (~self._loss.isfinite()).float()
        processes = is_bad.clone()
        if trainer.world_size > 1:  # otherwise the others would wait for this process for ever
            dist.all_reduce(processes)
        on_gpu = loss.device.type == "cuda"
        self._is_bad = torch.stack([is_bad, processes]).to("cpu", non_blocking=on_gpu)
        if on_gpu:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops before the optimiser's step, while a GPU is still busy with the gradients.

        Raises:
            InputError: In the first process, if the loss of any process is NaN or infinite.
            SystemExit: In the other processes in that case, with code 0.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        is_bad, some_is_bad = self._is_bad.bool().tolist()
        if not some_is_bad:
            self._batch = None  # frees its memory for the next one
            return
        another = f"the loss of another process is NaN or infinite at step {trainer.global_step}"
        message = self._save(trainer, float(self._loss)) if is_bad else another
        if trainer.is_global_zero:
            raise InputError(message)
        if is_bad:
            logger.error(message)
        # An error in another process makes Lightning kill the first one, which may still be writing.
        raise SystemExit(0)

    def _save(self, trainer: pl.Trainer, loss: float) -> str:
        """Saves the batch, and returns the message for the user."""
        annotations = trainer.datamodule.train_annotations
        paths = [None if index < 0 else str(annotations.path(index)) for index in self._batch.indices.tolist()]
        known = [path for path in paths if path]
        fields = {name: value.cpu() for name, value in self._batch._asdict().items() if value is not None}
        content = {**fields, "paths": paths, "loss": loss, "epoch": trainer.current_epoch, "step": trainer.global_step}
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        stream = io.BytesIO()
        torch.save(content, stream)
        path = write_atomic(self.folder / f"bad_batch{rank}.pt", stream.getvalue())
        more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
        return (
            f"the loss is {loss} in epoch {trainer.current_epoch}, step {trainer.global_step}; its batch is in {path} "
            f"({', '.join(known[:NAMES_SHOWN])}{more}), and the checkpoints so far are in "
            f"{self.folder / 'checkpoints'}. Try a lower --learning_rate, or --precision 32"
        )
