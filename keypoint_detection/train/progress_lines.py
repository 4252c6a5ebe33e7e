"""Progress of training as lines: above the progress bar, or alone where a bar would flood a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

# Seconds between two lines.
_AFTER_VALIDATION = 5.0
_WITHIN_EPOCHS = 60.0


def shows_bars() -> bool:
    """Whether a progress bar can overwrite itself in the output: in a terminal or a notebook."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


def loss_of_batch(trainer: pl.Trainer, outputs: Mapping[str, Tensor]) -> float:
    """The loss of a training batch, which Lightning has divided by the number of batches per optimiser step.

    Args:
        trainer: The trainer.
        outputs: What Lightning passes to callbacks after the batch. Reading it waits for a GPU.
    """
    return float(outputs["loss"]) * trainer.accumulate_grad_batches


class ProgressLines(pl.Callback):
    """Prints a line after validations, at most every five seconds; between them, one a minute if there is no bar."""

    def __init__(self) -> None:
        self._started = self._printed = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._started = self._printed = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints the progress of a long epoch."""
        if time.monotonic() - self._printed >= _WITHIN_EPOCHS and trainer.progress_bar_callback is None:
            loss = loss_of_batch(trainer, outputs)
            self._print(trainer, f"step {batch_idx + 1} of {trainer.num_training_batches}, loss {loss:.4g}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the results of a validation during training."""
        before = trainer.sanity_checking or trainer.global_step == 0
        if trainer.state.fn != "fit" or before:
            return
        if time.monotonic() - self._printed >= _AFTER_VALIDATION:
            values = {name: trainer.callback_metrics.get(f"validation/{name}") for name in ("loss", "meanAP")}
            found = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items() if value is not None)
            self._print(trainer, f"validation {found}")

    def _print(self, trainer: pl.Trainer, text: str) -> None:
        self._printed = time.monotonic()
        if trainer.is_global_zero:
            # Counted from 0, as Lightning's bar and the names of the pictures do.
            epochs = f"/{trainer.max_epochs - 1}" if (trainer.max_epochs or -1) > 0 else ""
            seconds = self._printed - self._started
            line = f"{seconds:.0f} s: epoch {trainer.current_epoch}{epochs}, {text}"
            if trainer.progress_bar_callback is not None:
                trainer.progress_bar_callback.print(line)
            else:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
