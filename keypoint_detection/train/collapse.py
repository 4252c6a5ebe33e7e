"""Notices a detector that finds nothing in training, and advises what to try."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from keypoint_detection.models.progress import TrainingProgress, has_end
from keypoint_detection.train.progress_lines import loss_of_batch

logger = logging.getLogger(__name__)

# A detector finds nothing if all heatmaps stay below NEAR_ZERO (ten times their initial value), or the AP below NO_AP,
# for this many evaluations in a row.
NEAR_ZERO = 0.05
NO_AP = 1e-4
EVALUATIONS = 3
# Before this share of a training run, or in its first steps, that is normal.
SHARE = 0.5
STEPS = 50
STEPS_OF_ENDLESS = 1000
# If the loss of an epoch is more than this many times that of the first batch, overfitting is not the cause.
RISE = 3.0
COLLAPSE_STATE = ("advice", "first_loss", "highest_loss", "low_evaluations", "empty_evaluations")


class CollapseWarning(pl.Callback):
    """Warns once if training is well under way and the detector finds nothing, and says what to try.

    Either the heatmaps are near zero everywhere, or they are not but the average precision still stays 0. The loss
    shows neither: it starts at the loss of empty heatmaps.

    Attributes:
        advice: What to try, once it has warned.
    """

    def __init__(self) -> None:
        self.advice: str | None = None
        self.first_loss: float | None = None  # of the first batch, when the predictions are close to zero
        self.highest_loss = 0.0  # of an epoch, in training or validation
        self.low_evaluations = self.empty_evaluations = 0  # in a row, up to the latest
        self._highest: Tensor | None = None  # value of the heatmaps of an evaluation, on the device
        self._progress: TrainingProgress | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any) -> None:
        """Keeps the loss of the first batch."""
        if self.first_loss is None:
            self.first_loss = loss_of_batch(trainer, outputs)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the heatmaps of the previous evaluation."""
        self._highest = torch.zeros((), device=trainer.strategy.root_device)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keeps the highest value of the heatmaps, without waiting for a GPU."""
        self._highest = torch.maximum(self._highest, outputs["heatmaps"].amax())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the heatmaps and the AP, if there is one: without any true keypoint, it is NaN."""
        values = trainer.callback_metrics
        mean_ap = float(values.get("validation/meanAP", math.nan))
        if self.advice is not None or trainer.sanity_checking or trainer.state.fn != "fit" or math.isnan(mean_ap):
            return
        highest = float(trainer.strategy.reduce(self._highest, reduce_op="max"))
        losses = [float(values[name]) for name in ("train/loss", "validation/loss") if name in values]
        self.highest_loss = max([self.highest_loss, *losses])
        self.low_evaluations = self.low_evaluations + 1 if highest < NEAR_ZERO else 0
        self.empty_evaluations = self.empty_evaluations + 1 if mean_ap < NO_AP else 0
        if not self._is_under_way(trainer):
            return
        if self.low_evaluations >= EVALUATIONS:
            change = "a larger --heatmap_sigma"
            found = (
                f"the heatmaps have been near zero everywhere for {self.low_evaluations} evaluations, with a highest "
                f"value of {highest:.2g} now"
            )
        elif self.empty_evaluations >= EVALUATIONS:
            change = "larger --maximal_gt_keypoint_pixel_distances"
            found = (
                f"the AP has stayed 0 for {self.empty_evaluations} evaluations, with heatmaps of up to {highest:.2g}: "
                "detections are too far from the true keypoints, or are of something else; the pictures show which"
            )
        else:
            return
        self.advice = self._what_to_try(pl_module, change)
        if trainer.is_global_zero:
            logger.warning("%s. Try %s", found, self.advice)

    def state_dict(self) -> dict[str, Any]:
        """What has been observed so far."""
        return {name: getattr(self, name) for name in COLLAPSE_STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what was observed before."""
        for name in COLLAPSE_STATE:
            setattr(self, name, state_dict[name])

    def _is_under_way(self, trainer: pl.Trainer) -> bool:
        """Whether training has come far enough for any detector to find something."""
        if not has_end(trainer):
            return trainer.global_step >= STEPS_OF_ENDLESS
        self._progress = self._progress or TrainingProgress(trainer)
        return self._progress(trainer.global_step) >= SHARE and trainer.global_step >= STEPS

    def _what_to_try(self, pl_module: pl.LightningModule, otherwise: str) -> str:
        """What may help; `otherwise` comes first if the loss has not risen."""
        values = pl_module.hparams
        if self.first_loss is not None and self.highest_loss > RISE * self.first_loss:
            rise = f"from {self.first_loss:.3g} to {self.highest_loss:.3g}"
            return f"a lower --learning_rate than {values.learning_rate:g} first: the loss has risen {rise}"
        focal = "" if values.loss == "focal" else "--loss focal, "
        return (
            f"{otherwise}, {focal}a larger --image_size, a lower --learning_rate or longer training, and check in "
            "augmentations.jpg that the labels are right"
        )
