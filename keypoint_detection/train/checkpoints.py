"""Which checkpoints a training run keeps, and what they contain."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from keypoint_detection.errors import InputError
from keypoint_detection.train.last_checkpoint import LastCheckpoint

MONITOR = "validation/meanAP"
# What Lightning and its weight averaging add to a checkpoint only for resuming.
TRAINING_STATE = (
    "optimizer_states", "lr_schedulers", "callbacks", "loops", "current_model_state", "averaging_state",
    "MixedPrecision",
)  # fmt: skip
# A mean AP within this fraction of the highest counts as equally good.
_AS_GOOD = 0.01


class TopCheckpoints(ModelCheckpoint):
    """Keeps the checkpoints with the highest mean AP. Only validations that computed it count.

    These checkpoints are for use, and leave out what only resuming needs: half to three quarters of the size.
    """

    _saving = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves if the mean AP is among the best."""
        if MONITOR in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether to keep a checkpoint with this mean AP; never if there was no true keypoint to find."""
        if current is None or current.isnan():
            return False
        return super().check_monitor_top_k(trainer, current)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leaves out the training state if this callback is the one that saves."""
        if self._saving:
            for key in TRAINING_STATE:
                checkpoint.pop(key, None)

    def _monitor_candidates(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        # Lightning would copy all metrics, which are hundreds with many channels. Only these are compared or occur in
        # file names.
        candidates = {"epoch": torch.tensor(trainer.current_epoch), "step": torch.tensor(trainer.global_step)}
        if MONITOR in trainer.callback_metrics:
            candidates[MONITOR] = trainer.callback_metrics[MONITOR].clone()
        return candidates

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        # Lightning's `save_weights_only` would leave out what other callbacks add: averaged weights and thresholds.
        self._saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self._saving = False


class BestCheckpoint(TopCheckpoints):
    """Keeps the latest checkpoint whose mean AP is within a hundredth of the highest.

    With a few dozen validation images, such a difference is chance, and the later checkpoint has trained for longer. If
    the weights that a run starts from are evaluated, they count too.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(monitor=MONITOR, mode="max", save_top_k=1, **arguments)
        self._last_global_step_saved = -1  # with Lightning's 0, it could not save before the first step
        self.highest = 0.0

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether a checkpoint with this mean AP replaces the previous one."""
        if current is None or current.isnan():
            return False
        self.highest = max(self.highest, float(current))
        # All processes have to agree, even if their values differ in the last bits.
        return trainer.strategy.reduce_boolean_decision(float(current) >= (1 - _AS_GOOD) * self.highest)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the highest mean AP so far."""
        return {**super().state_dict(), "highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state."""
        super().load_state_dict(state_dict)
        best = state_dict["best_model_score"]  # older checkpoints hold nothing else
        self.highest = state_dict.get("highest", 0.0 if best is None else float(best))


def create_checkpoint_callbacks(
    folder: Path,
    save_top_k: int = 1,
    checkpoint_every_n_epochs: int | Literal["auto"] = "auto",
    checkpoint_every_n_steps: int | None = None,
) -> list[Checkpoint]:
    """Makes the callbacks that write `best.ckpt` and `last.ckpt`.

    Args:
        folder: Where the checkpoints go.
        save_top_k: If 2 or more, how many of the checkpoints with the highest mean AP to keep; -1 keeps all. They are
            stored beside `best.ckpt`, the latest checkpoint whose mean AP is within a hundredth of the highest. 0 and 1
            keep only `best.ckpt`.
        checkpoint_every_n_epochs: Epochs from one `last.ckpt` to the next. `auto` writes it after each epoch, but at
            most every five seconds.
        checkpoint_every_n_steps: Optimiser steps from one `last.ckpt` to the next within an epoch, for long epochs;
            none writes it only between epochs. SIGTERM and Ctrl-C always write it.

    Returns:
        The callbacks.

    Raises:
        InputError: For a number below -1, or an interval below 1.
    """
    if save_top_k < -1:
        raise InputError(f"--save_top_k {save_top_k}: expected a number of checkpoints, or -1 for all")
    common: dict[str, Any] = {
        "dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False,
        "save_on_train_epoch_end": False,  # save after validations instead
    }  # fmt: skip
    best = BestCheckpoint(filename="best", **common)
    last = LastCheckpoint(folder / "last.ckpt", checkpoint_every_n_epochs, checkpoint_every_n_steps)
    callbacks: list[Checkpoint] = [best, last]
    if save_top_k > 1 or save_top_k == -1:
        name = "epoch{epoch:04d}-AP{validation/meanAP:.4f}"
        callbacks.append(TopCheckpoints(filename=name, monitor=MONITOR, mode="max", save_top_k=save_top_k, **common))
    return callbacks
