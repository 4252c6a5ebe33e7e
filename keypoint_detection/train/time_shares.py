"""Where the time of a training run goes, and how to wait less for data."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from keypoint_detection.data.geometry import SMALLEST_SIDE, fit_sizes
from keypoint_detection.data.loading import device_type, usable_cores


class TimeShares(pl.Callback):
    """Measures the shares of time for waiting for data, for steps, for evaluation and for everything else.

    Everything else happens between epochs, such as saving checkpoints. A step ends when its optimiser step ends on the
    host. A GPU lags behind with its queue of kernels, so waiting for data only counts if the host itself waits.
    """

    def __init__(self) -> None:
        self.seconds = {"data": 0.0, "step": 0.0, "evaluation": 0.0, "other": 0.0}
        self._mark = time.perf_counter()
        self._resumed = False

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._mark
        self._mark = now

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes that the run is resumed, so that only the time since then is known."""
        self._resumed = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._mark = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the time between two epochs."""
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
            advice: How to wait less for data. It is added if data takes more than 15 % of the time and training at
                least half a minute: in less, much of the wait is a fixed cost of each epoch, however data is loaded.

        Returns:
            The line.
        """
        total = sum(self.seconds.values()) or 1.0
        shares = {part: seconds / total for part, seconds in self.seconds.items()}
        told = {part: f"{share:.0%}" for part, share in shares.items()}
        if told["other"] == "0%":
            del told["other"]
        text = ", ".join(f"{part} {share}" for part, share in told.items())
        line = f"time: {text} of {total:.0f} s{' since it was resumed' if self._resumed else ''}"
        if advice and shares["data"] > 0.15 and self.seconds["data"] + self.seconds["step"] >= 30:
            line += f"; to wait less for data: {advice}"
        return line


def advise(loader: DataLoader, trainer: pl.Trainer) -> str:
    """How to wait less for data.

    Args:
        loader: The loader of the training images.
        trainer: The trainer, which knows the device.

    Returns:
        The remaining options, as flags; empty if there are none.
    """
    ways = []
    if device_type(trainer) != "cpu" or usable_cores() > loader.num_workers + min(2, torch.get_num_threads()):
        ways.append(f"more than --num_workers {loader.num_workers}")
    if loader.dataset.cache is None:
        ways.append("--cache_images true")
    parts = loader.dataset.crop_size
    side = max(parts) if parts else fit_sizes(trainer.datamodule.train_sizes, loader.dataset.image_size).max()
    if not 0 < side <= SMALLEST_SIDE:
        ways.append("a smaller --train_crop_size" if parts else "a smaller --image_size")
    return ", ".join(ways)
