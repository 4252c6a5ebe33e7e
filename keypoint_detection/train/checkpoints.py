"""Which checkpoints a training keeps, and what they say about themselves."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from keypoint_detection.train.evaluation_schedule import is_last_epoch

MONITOR = "validation/meanAP"
SECONDS_BETWEEN_SAVES = 5.0


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoints with the highest mean AP, looking only after validations that computed it."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves if the mean AP is among the best."""
        if MONITOR in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the latest checkpoint, written at the ends of epochs but no more often than every few seconds.

    Epochs of a few images would otherwise spend more time on the disk than on training.
    """

    _saved_at = -math.inf

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, unless the last time was a moment ago and another epoch follows."""
        now = time.monotonic()
        if now - self._saved_at >= SECONDS_BETWEEN_SAVES or is_last_epoch(trainer):
            super().on_train_epoch_end(trainer, pl_module)
            self._saved_at = time.monotonic()


def create_checkpoint_callbacks(
    folder: Path, save_top_k: int = 1, checkpoint_every_n_epochs: int = 1
) -> list[ModelCheckpoint]:
    """Callbacks that write `best.ckpt` and `last.ckpt`.

    Args:
        folder: Where the checkpoints go.
        save_top_k: How many of the best checkpoints by mean AP to keep. The first is `best.ckpt`.
        checkpoint_every_n_epochs: Epochs from one `last.ckpt` to the next, which are more where epochs take less than
            five seconds.

    Returns:
        The callbacks.
    """
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    best = BestCheckpoint(filename="best", monitor=MONITOR, mode="max", save_top_k=1, **common)
    last = LastCheckpoint(
        filename="last", every_n_epochs=checkpoint_every_n_epochs, save_on_train_epoch_end=True, **common
    )
    callbacks: list[ModelCheckpoint] = [best, last]
    if save_top_k > 1:
        name = "epoch{epoch:04d}-AP{validation/meanAP:.4f}"
        callbacks.append(BestCheckpoint(filename=name, monitor=MONITOR, mode="max", save_top_k=save_top_k, **common))
    return callbacks
