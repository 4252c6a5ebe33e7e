"""Stops training early when the validation loss no longer falls."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl

from keypoint_detection.errors import InputError
from keypoint_detection.models.progress import may_end

logger = logging.getLogger(__name__)


class RelativeEarlyStopping(pl.Callback):
    """Stops when the validation loss no longer falls by a given fraction.

    Args:
        early_stopping_relative_threshold: Fraction of the best validation loss, below 1, by which a new loss has to be
            lower to count as progress. Negative values never stop.
        early_stopping_patience: Number of validations without progress after which training stops, at least 1.
    """

    def __init__(self, early_stopping_relative_threshold: float = -1.0, early_stopping_patience: int = 5) -> None:
        threshold = early_stopping_relative_threshold
        if not threshold < 1:
            raise InputError(f"--early_stopping_relative_threshold {threshold}: expected below 1")
        if early_stopping_patience < 1:
            raise InputError(f"--early_stopping_patience {early_stopping_patience}: expected at least 1")
        self.early_stopping_relative_threshold = threshold
        self.early_stopping_patience = early_stopping_patience
        self.best = math.inf
        self.without_progress = 0

    def may_stop(self, trainer: pl.Trainer) -> bool:
        """Whether training will stop after the current validation, unless that one shows progress."""
        return self._is_due(trainer, trainer.current_epoch + trainer.is_last_batch, self.without_progress + 1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops a resumed run that had already stopped early, and was interrupted at its very end."""
        if self._is_due(trainer, trainer.current_epoch, self.without_progress):
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the validation loss with the best so far; a validation before the first step does not count."""
        loss = trainer.callback_metrics.get("validation/loss")
        before = trainer.sanity_checking or trainer.global_step == 0
        if self.early_stopping_relative_threshold < 0 or before or loss is None:
            return
        if float(loss) < self.best * (1 - self.early_stopping_relative_threshold):
            self.best, self.without_progress = float(loss), 0
            return
        stops = self.may_stop(trainer)
        self.without_progress += 1
        if stops:
            trainer.should_stop = True
            logger.info(
                "stopping early: the validation loss has not fallen by a fraction of %g below %.4g in %d validations",
                self.early_stopping_relative_threshold, self.best, self.without_progress,
            )  # fmt: skip

    def _is_due(self, trainer: pl.Trainer, epochs: int, without_progress: int) -> bool:
        """Whether training stops after this number of epochs and of validations without progress."""
        stops = self.early_stopping_relative_threshold >= 0 and without_progress >= self.early_stopping_patience
        return stops and may_end(trainer, epochs)

    def state_dict(self) -> dict[str, Any]:
        """The progress so far."""
        return {"best": self.best, "without_progress": self.without_progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the progress."""
        self.best, self.without_progress = state_dict["best"], state_dict["without_progress"]
