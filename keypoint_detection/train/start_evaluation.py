"""Evaluation of the weights that a training run starts from, which may be better than all later ones."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.seed import isolate_rng

from keypoint_detection.train.checkpoints import MONITOR
from keypoint_detection.train.evaluation_row import START_EPOCH, EvaluationRow

logger = logging.getLogger(__name__)


class StartEvaluation(pl.Callback):
    """Evaluates before the first step, as after later ones, so that the initial weights may become the best checkpoint.

    A short training run on a few images may overfit before its first evaluation, and would otherwise end with a
    checkpoint that is worse than what it started from. The evaluation takes place once everything is set up, before the
    clocks of the first epoch start.

    Args:
        row: Collects what the evaluation logs.
    """

    def __init__(self, row: EvaluationRow) -> None:
        self.row = row

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluates before the first epoch."""
        if trainer.global_step > 0:
            return
        self.row.checkpoint_epoch = START_EPOCH
        trainer.validating = True  # and back afterwards, as Lightning does for validations during training
        with isolate_rng():  # so that training draws the same numbers as without this evaluation
            trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        self.row.checkpoint_epoch = None
        mean_ap = float(trainer.callback_metrics.get(MONITOR, math.nan))
        if trainer.is_global_zero and not math.isnan(mean_ap):
            logger.info("the weights of --checkpoint have a mean AP of %.3f before training", round(mean_ap, 6))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the logged epoch instead of Lightning's, which is the next one."""
        if self.row.checkpoint_epoch is not None:
            checkpoint["epoch"] = self.row.checkpoint_epoch
