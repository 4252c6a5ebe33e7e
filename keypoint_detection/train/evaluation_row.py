"""The row of values that an evaluation logs."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
import torch

# Of the weights that a training starts from: before the first epoch, which is 0.
START_EPOCH = -1


class EvaluationRow(pl.Callback):
    """Collects the values of an evaluation, and gives them to the loggers as one row at its end.

    Lightning's own `log` keeps a metric object for every value, which takes a millisecond and more each time: with tens
    of channels that was longer than all metrics together take.

    Attributes:
        checkpoint_epoch: Epoch that the weights are of which are evaluated before or after the training; None while it
            trains.
    """

    def __init__(self) -> None:
        self.checkpoint_epoch: int | None = None
        self._values: dict[str, float] = {}

    def epoch(self, trainer: pl.Trainer) -> int:
        """Epoch that the weights are of which are evaluated.

        Args:
            trainer: The trainer.

        Returns:
            The epoch, counted from 0; -1 before the first step.
        """
        return trainer.current_epoch if self.checkpoint_epoch is None else self.checkpoint_epoch

    def add(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        """Adds values, which other callbacks see in `trainer.callback_metrics` from now on.

        Args:
            trainer: The trainer.
            values: By log name.
        """
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        self._values |= values

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets what earlier validations found, which would pass for the findings of one that computes less."""
        self._values = {}
        for name in [name for name in trainer.callback_metrics if name.startswith("validation/")]:
            del trainer.callback_metrics[name]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the row."""
        self._log(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets what an evaluation that was interrupted has left."""
        self._values = {}

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the row."""
        self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        values, self._values = self._values, {}
        # While training the step of the latest batch, counted from 0, as in the rows of losses, and then the next one.
        step = max(0, trainer.global_step - (trainer.state.fn == "fit"))
        for run_logger in trainer.loggers if values else ():
            run_logger.log_metrics({**values, "epoch": self.epoch(trainer)}, step=step)
