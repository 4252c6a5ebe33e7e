"""Callbacks that watch a training: say what trains, stop it early, notice a collapse, and say where the time went."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import pytorch_lightning as pl

from keypoint_detection.wording import counted

logger = logging.getLogger(__name__)


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
        early_stopping_patience: Validations without progress after which the training stops.
    """

    def __init__(self, early_stopping_relative_threshold: float = -1.0, early_stopping_patience: int = 5) -> None:
        self.early_stopping_relative_threshold = early_stopping_relative_threshold
        self.early_stopping_patience = early_stopping_patience
        self.best = math.inf
        self.without_progress = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops a training that had stopped before, and was interrupted at its very end."""
        if self.early_stopping_relative_threshold >= 0 and self.without_progress >= self.early_stopping_patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the validation loss with the best so far."""
        loss = trainer.callback_metrics.get("validation/loss")
        if self.early_stopping_relative_threshold < 0 or trainer.sanity_checking or loss is None:
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
    """Warns once when the loss falls but nothing is detected: heatmaps near zero everywhere, or an AP that stays 0."""

    def __init__(self) -> None:
        self.first_loss: float | None = None
        self.empty_evaluations = 0
        self.warned = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the latest loss and AP."""
        values = trainer.callback_metrics
        if trainer.sanity_checking or self.warned or not {"train/loss", "validation/meanAP"} <= values.keys():
            return
        loss, mean_ap = float(values["train/loss"]), float(values["validation/meanAP"])
        self.first_loss = self.first_loss or loss
        self.empty_evaluations = self.empty_evaluations + 1 if mean_ap == 0 else 0
        if self.empty_evaluations >= 5 and trainer.current_epoch >= 5 and loss < 0.5 * self.first_loss:
            self.warned = True
            logger.warning(
                "the loss fell from %.3g to %.3g but the AP has stayed 0 for %d evaluations: either the heatmaps have "
                "collapsed to zero, or what is found lies farther than --maximal_gt_keypoint_pixel_distances from the "
                "truth; the pictures show which. Try a larger --heatmap_sigma, --loss focal, a larger --image_size or "
                "a lower --learning_rate, or larger distances.",
                self.first_loss, loss, self.empty_evaluations,
            )  # fmt: skip


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
            advice: Where the data takes more than 15 %, what makes it less.

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
        if shares["data"] > 0.15:
            line += f"; to wait less for data: {advice}"
        return line
