"""Which checkpoints a training keeps, and what they say about themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from keypoint_detection.train.last_checkpoint import LastCheckpoint

MONITOR = "validation/meanAP"


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoints with the highest mean AP, looking only after validations that computed it."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves if the mean AP is among the best."""
        if MONITOR in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


class TopCheckpoints(BestCheckpoint):
    """Keeps several of the best; a class of its own, because Lightning tells the states of callbacks apart by class."""


def create_checkpoint_callbacks(
    folder: Path,
    save_top_k: int = 1,
    checkpoint_every_n_epochs: int | Literal["auto"] = "auto",
    checkpoint_every_n_steps: int | None = None,
) -> list[Checkpoint]:
    """Callbacks that write `best.ckpt` and `last.ckpt`.

    Args:
        folder: Where the checkpoints go.
        save_top_k: How many of the best checkpoints by mean AP to keep. The first is `best.ckpt`.
        checkpoint_every_n_epochs: Epochs from one `last.ckpt` to the next. `auto` writes it after each epoch, but at
            most every five seconds.
        checkpoint_every_n_steps: Optimiser steps from one `last.ckpt` to the next within epochs, for long ones; none
            writes it between epochs only. SIGTERM always writes it.

    Returns:
        The callbacks.
    """
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    best = BestCheckpoint(filename="best", monitor=MONITOR, mode="max", save_top_k=1, **common)
    last = LastCheckpoint(folder / "last.ckpt", checkpoint_every_n_epochs, checkpoint_every_n_steps)
    callbacks: list[Checkpoint] = [best, last]
    if save_top_k > 1:
        name = "epoch{epoch:04d}-AP{validation/meanAP:.4f}"
        callbacks.append(TopCheckpoints(filename=name, monitor=MONITOR, mode="max", save_top_k=save_top_k, **common))
    return callbacks
