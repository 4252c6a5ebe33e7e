"""An exponential moving average of the weights, which is what is validated and saved."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from keypoint_detection.errors import InputError


class ExponentialMovingAverage(WeightAveraging):
    """Validates and saves a moving average of the weights, which is steadier than the last step.

    Statistics of batch normalisation are averaged too.

    The decay grows with the number n of steps, `min(ema_decay, (1 + n) / (10 + n))`, so that a short training is not
    held back by its random start (as in TensorFlow's `ExponentialMovingAverage`).

    Args:
        ema_decay: Share of the average that each step keeps, in [0, 1). 0 trains without an average, for which a
            learning_rate_schedule that ends at 0 is better.
    """

    def __init__(self, ema_decay: float = 0.9995) -> None:
        if not 0 <= ema_decay < 1:
            raise InputError(f"--ema_decay {ema_decay}: expected a number in [0, 1)")
        self.ema_decay = ema_decay
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the averaged weights in place while a training validates; a loaded checkpoint already has its own."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the current weights back."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the current weights as they are: the checkpoints have both."""

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        if not averaged[0].is_floating_point():  # such as how many batches a normalisation has seen
            torch._foreach_copy_(averaged, current)
            return
        count = int(num_averaged)
        decay = min(self.ema_decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(averaged, current, 1 - decay)
