"""Stops a training whose loss is no longer a number, before its weights are spoilt."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from keypoint_detection.batch import Batch
from keypoint_detection.errors import InputError
from keypoint_detection.files import write_atomic

logger = logging.getLogger(__name__)

NAMES_SHOWN = 3


class StopAtBadLoss(pl.Callback):
    """Stops at a loss of NaN or infinity, and saves the batch that it came from.

    The weights are not touched by it, and the checkpoints so far stay as they are.

    Args:
        folder: Where `bad_batch.pt` goes, or `bad_batch-<rank>.pt` with several processes: the fields of the batch by
            name (see `Batch`), `paths` of its images, `loss`, `epoch` and `step`; `torch.load` reads it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batch: Batch | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, *_: Any) -> None:
        """Remembers the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Looks at the loss.

        Raises:
            InputError: In the first process, if the loss is no number in any.
            SystemExit: In the others then, with code 0.
        """
        is_bad = not bool(torch.isfinite(loss))
        some_is_bad = is_bad
        if trainer.world_size > 1:  # or the others would wait for this process for ever
            some_is_bad = trainer.strategy.reduce_boolean_decision(is_bad, all=False)
        if not some_is_bad:
            return
        another = f"the loss of another process is no number at step {trainer.global_step}"
        message = self._save(trainer, float(loss.detach())) if is_bad else another
        if trainer.is_global_zero:
            raise InputError(message)
        if is_bad:
            logger.error(message)
        # Lightning kills its first process, which may still be writing, when another one ends with an error.
        raise SystemExit(0)

    def _save(self, trainer: pl.Trainer, loss: float) -> str:
        """Saves the batch; what to tell the user."""
        annotations = trainer.datamodule.train_annotations
        paths = [str(annotations.path(index)) for index in self._batch.indices.tolist()]
        fields = {name: value.cpu() for name, value in self._batch._asdict().items() if value is not None}
        content = {**fields, "paths": paths, "loss": loss, "epoch": trainer.current_epoch, "step": trainer.global_step}
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        stream = io.BytesIO()
        torch.save(content, stream)
        path = write_atomic(self.folder / f"bad_batch{rank}.pt", stream.getvalue())
        more = f" and {len(paths) - NAMES_SHOWN} more" if len(paths) > NAMES_SHOWN else ""
        return (
            f"the loss is {loss} in epoch {trainer.current_epoch}, step {trainer.global_step}; its batch is in {path} "
            f"({', '.join(paths[:NAMES_SHOWN])}{more}), and the checkpoints so far are in "
            f"{self.folder / 'checkpoints'}. Try a lower --learning_rate, or --precision 32"
        )
