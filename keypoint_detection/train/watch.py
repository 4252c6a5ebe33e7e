"""Callbacks that watch a training: say what trains, stop it early, notice a collapse, and say where the time went."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from keypoint_detection.errors import InputError
from keypoint_detection.models.progress import TrainingProgress, has_end
from keypoint_detection.train.progress_lines import loss_of_batch
from keypoint_detection.wording import counted

logger = logging.getLogger(__name__)

# A training finds nothing where all heatmaps stay below the first, ten times what they start at, or the AP below the
# second, in so many evaluations in a row.
NEAR_ZERO = 0.05
NO_AP = 1e-4
EVALUATIONS = 3
# Before this share of a training, or with so few steps, any may be like that.
SHARE = 0.5
STEPS = 50
STEPS_OF_ENDLESS = 1000
# A loss of an epoch that is more than so many times that of the first batch has not come of overfitting.
RISE = 3.0
COLLAPSE_STATE = ("advice", "first_loss", "highest_loss", "low_evaluations", "empty_evaluations")


class NetworkSize(pl.Callback):
    """Says how large the network is before it trains."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Counts its parameters; later, a strategy may have spread them over devices."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        total = sum(p.numel() for p in pl_module.parameters())
        encoder = sum(p.numel() for module in pl_module.backbone.encoder_modules() for p in module.parameters())
        epochs = pl_module.hparams.freeze_encoder_epochs
        while_frozen = "" if epochs < 0 else f" for {counted(epochs, 'epoch')}"
        frozen = f"; the {encoder:,} of the encoder do not train{while_frozen}" if epochs else ""
        logger.info("network: %s parameters%s", f"{total:,}", frozen)


class RelativeEarlyStopping(pl.Callback):
    """Stops when the validation loss no longer falls by a given fraction.

    Args:
        early_stopping_relative_threshold: Fraction of the best validation loss by which a new one has to be lower to
            count as progress. Negative values never stop.
        early_stopping_patience: Validations without progress after which the training stops, at least 1.
    """

    def __init__(self, early_stopping_relative_threshold: float = -1.0, early_stopping_patience: int = 5) -> None:
        if early_stopping_patience < 1:
            raise InputError(f"--early_stopping_patience {early_stopping_patience}: expected at least 1")
        self.early_stopping_relative_threshold = early_stopping_relative_threshold
        self.early_stopping_patience = early_stopping_patience
        self.best = math.inf
        self.without_progress = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops a training that had stopped before, and was interrupted at its very end."""
        if self.early_stopping_relative_threshold >= 0 and self.without_progress >= self.early_stopping_patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the validation loss with the best so far; that before the first step is no progress."""
        loss = trainer.callback_metrics.get("validation/loss")
        before = trainer.sanity_checking or trainer.global_step == 0
        if self.early_stopping_relative_threshold < 0 or before or loss is None:
            return
        if float(loss) < self.best * (1 - self.early_stopping_relative_threshold):
            self.best, self.without_progress = float(loss), 0
            return
        self.without_progress += 1
        if self.without_progress >= self.early_stopping_patience:
            trainer.should_stop = True
            logger.info(
                "stopping early: the validation loss has not fallen by %g of %.4g in %d validations",
                self.early_stopping_relative_threshold, self.best, self.without_progress,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The progress so far."""
        return {"best": self.best, "without_progress": self.without_progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the progress."""
        self.best, self.without_progress = state_dict["best"], state_dict["without_progress"]


class CollapseWarning(pl.Callback):
    """Warns once where a training that is well under way finds nothing, and says what to try.

    Either the heatmaps are near zero everywhere, or they are not and the average precision stays 0 all the same. The
    loss tells neither: that of empty heatmaps is what it begins with.

    Attributes:
        advice: What to try, once it has warned.
    """

    def __init__(self) -> None:
        self.advice: str | None = None
        self.first_loss: float | None = None  # of a batch, when next to nothing is predicted
        self.highest_loss = 0.0  # of an epoch, in training or validation
        self.low_evaluations = self.empty_evaluations = 0  # in a row, up to the latest
        self._highest: Tensor | None = None  # value of the heatmaps of an evaluation, on the device
        self._progress: TrainingProgress | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any) -> None:
        """Keeps the loss of the first batch."""
        if self.first_loss is None:
            self.first_loss = loss_of_batch(trainer, outputs)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the heatmaps of the evaluation before."""
        self._highest = torch.zeros((), device=trainer.strategy.root_device)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keeps the highest value of the heatmaps, without waiting for a GPU."""
        self._highest = torch.maximum(self._highest, outputs["heatmaps"].amax())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the heatmaps and the AP, if there is one: without a single true keypoint it is no number."""
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
                "what is found lies too far from the truth, or is something else; the pictures show which"
            )
        else:
            return
        self.advice = self._what_to_try(pl_module, change)
        if trainer.is_global_zero:
            logger.warning("%s. Try %s", found, self.advice)

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {name: getattr(self, name) for name in COLLAPSE_STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what was seen."""
        for name in COLLAPSE_STATE:
            setattr(self, name, state_dict[name])

    def _is_under_way(self, trainer: pl.Trainer) -> bool:
        """Whether as much of the training is done as any needs to find something."""
        if not has_end(trainer):
            return trainer.global_step >= STEPS_OF_ENDLESS
        self._progress = self._progress or TrainingProgress(trainer)
        return self._progress(trainer.global_step) >= SHARE and trainer.global_step >= STEPS

    def _what_to_try(self, pl_module: pl.LightningModule, otherwise: str) -> str:
        """What may help; `otherwise` comes first where the loss has not risen."""
        values = pl_module.hparams
        if self.first_loss is not None and self.highest_loss > RISE * self.first_loss:
            rise = f"from {self.first_loss:.3g} to {self.highest_loss:.3g}"
            return f"a lower --learning_rate than {values.learning_rate:g} first: the loss has risen {rise}"
        focal = "" if values.loss == "focal" else "--loss focal, "
        return (
            f"{otherwise}, {focal}a larger --image_size, a lower --learning_rate or a longer training, and see in "
            "augmentations.jpg whether the labels are right"
        )


class TimeShares(pl.Callback):
    """Measures which share of the training went to waiting for data, to the steps, to evaluation and to all else.

    All else is what happens between epochs, such as saving checkpoints. The end of a step is the end of its optimizer
    step on the host. On a GPU the queue of kernels runs behind, so that waiting for data is only counted where the host
    itself waits.
    """

    def __init__(self) -> None:
        self.seconds = {"data": 0.0, "step": 0.0, "evaluation": 0.0, "other": 0.0}
        self._mark = time.perf_counter()

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._mark
        self._mark = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._mark = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends what came between two epochs."""
        self._lap("other")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Ends the wait for a batch."""
        self._lap("data")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Ends a step."""
        self._lap("step")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts an evaluation."""
        if not trainer.sanity_checking:
            self._lap("other")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends an evaluation."""
        if not trainer.sanity_checking:
            self._lap("evaluation")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock."""
        self._lap("other")

    def summary(self, advice: str) -> str:
        """One line with the shares.

        Args:
            advice: What makes it less where the data takes more than 15 %, of half a minute of training at least: in
                less, much of it is what an epoch costs, however its data is loaded.

        Returns:
            The line.
        """
        total = sum(self.seconds.values()) or 1.0
        shares = {part: seconds / total for part, seconds in self.seconds.items()}
        told = {part: f"{share:.0%}" for part, share in shares.items()}
        if told["other"] == "0%":
            del told["other"]
        text = ", ".join(f"{part} {share}" for part, share in told.items())
        line = f"time: {text} of {total:.0f} s"
        if advice and shares["data"] > 0.15 and self.seconds["data"] + self.seconds["step"] >= 30:
            line += f"; to wait less for data: {advice}"
        return line
