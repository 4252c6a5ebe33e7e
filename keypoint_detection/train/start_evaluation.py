"""The evaluation of the weights that a training starts from, which may be better than all that it comes to."""

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
    """Evaluates before the first step, as after any other, so that the best checkpoint may be the weights as they were.

    A short training on a few images may overfit from its first evaluation on, and would else end with a checkpoint that
    is worse than what it started from. It runs once all else has begun, and before the clocks of the first epoch.

    Args:
        row: Takes what is logged of the evaluation.
    """

    def __init__(self, row: EvaluationRow) -> None:
        self.row = row

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluates before the first epoch."""
        if trainer.global_step > 0:
            return
        self.row.checkpoint_epoch = START_EPOCH
        trainer.validating = True  # and back, as Lightning does around the validations within a training
        with isolate_rng():  # the training draws the same numbers as without it
            trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        self.row.checkpoint_epoch = None
        mean_ap = float(trainer.callback_metrics.get(MONITOR, math.nan))
        if trainer.is_global_zero and not math.isnan(mean_ap):
            logger.info("the weights of --checkpoint have a mean AP of %.3f before the training", round(mean_ap, 6))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the epoch that is logged, where Lightning has that which follows."""
        if self.row.checkpoint_epoch is not None:
            checkpoint["epoch"] = self.row.checkpoint_epoch
