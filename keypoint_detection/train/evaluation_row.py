"""The row of values that an evaluation logs."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
import torch

# Epoch of the weights that a training run starts from. The first epoch is 0.
START_EPOCH = -1


class EvaluationRow(pl.Callback):
    """Collects the values of an evaluation, and passes them to the loggers as one row at its end.

    Lightning's own `log` keeps a metric object for every value, which takes a millisecond or more each time. With tens
    of channels, that took longer than computing all metrics.

    Attributes:
        checkpoint_epoch: Epoch of the weights that are evaluated before or after training; None during training.
    """

    def __init__(self) -> None:
        self.checkpoint_epoch: int | None = None
        self._values: dict[str, float] = {}

    def epoch(self, trainer: pl.Trainer) -> int:
        """Epoch of the weights that are evaluated.

        Args:
            trainer: The trainer.

        Returns:
            The epoch, counted from 0; -1 before the first step.
        """
        return trainer.current_epoch if self.checkpoint_epoch is None else self.checkpoint_epoch

    def add(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        """Adds values to the row, and to `trainer.callback_metrics`, where other callbacks see them at once.

        Args:
            trainer: The trainer.
            values: Values by log name.
        """
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        self._values |= values

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets earlier values, which would pass for those of this validation if it computes fewer."""
        self._values = {}
        for name in [name for name in trainer.callback_metrics if name.startswith("validation/")]:
            del trainer.callback_metrics[name]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the row."""
        self._log(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets what an interrupted evaluation has left behind."""
        self._values = {}

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the row."""
        self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        values, self._values = self._values, {}
        # During training, the step of the latest batch, counted from 0 as in the rows of losses. Afterwards, the next.
        step = max(0, trainer.global_step - (trainer.state.fn == "fit"))
        for run_logger in trainer.loggers if values else ():
            run_logger.log_metrics({**values, "epoch": self.epoch(trainer)}, step=step)
