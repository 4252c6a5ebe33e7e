"""An exponential moving average of the weights, which is validated and saved instead of the current ones."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from keypoint_detection.errors import InputError


class ExponentialMovingAverage(WeightAveraging):
    """Validates and saves a moving average of the weights, which is steadier than the current weights.

    Batch normalisation statistics are averaged too.

    The decay grows with the number n of steps, `min(ema_decay, (1 + n) / (10 + n))`, so that the random initial weights
    do not hold a short training run back (as in TensorFlow's `ExponentialMovingAverage`).

    Args:
        ema_decay: Share of the average that each step keeps, in [0, 1). 0 trains without averaging; a
            learning_rate_schedule that ends at 0 is then better.
    """

    def __init__(self, ema_decay: float = 0.9995) -> None:
        if not 0 <= ema_decay < 1:
            raise InputError(f"--ema_decay {ema_decay}: expected a number in [0, 1)")
        self.ema_decay = ema_decay
        self._updates = 0
        self._averaged: list[Tensor] = []
        self._current: list[Tensor] = []
        super().__init__(use_buffers=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads how many steps the average has seen, since reading it at each step would wait for the device."""
        self._updates = int(self._average_model.n_averaged)
        # Once, since collecting them takes as long as averaging them.
        self._averaged, self._current = (
            [*module.parameters(), *module.buffers()] for module in (self._average_model.module, pl_module)
        )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Adds the weights after an optimiser step."""
        if trainer.global_step <= self._latest_update_step:
            return
        self._average(self._averaged, self._current, self._updates)
        self._updates += 1
        self._average_model.n_averaged += 1  # saved in the checkpoint
        self._latest_update_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swaps in the averaged weights for a validation during training; a loaded checkpoint already has them."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the current weights back."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the current weights as they are: the averaged ones are in the checkpoints."""

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], updates: int) -> None:
        decay = min(self.ema_decay, (1 + updates) / (10 + updates)) if updates else 0.0
        floats, others = [], []  # others: for example, how many batches a normalisation layer has seen
        for pair in zip(averaged, current, strict=True):
            (floats if pair[0].is_floating_point() else others).append(pair)
        torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), 1 - decay)
        if others:
            torch._foreach_copy_(*map(list, zip(*others, strict=True)))
