"""`last.ckpt`: written so that a run that resumes from it ends as if it had never been interrupted."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from keypoint_detection.errors import InputError
from keypoint_detection.models.progress import STEPS_BETWEEN_QUESTIONS

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_SAVES = 5.0
_REASONS = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted"}


class LastCheckpoint(Checkpoint):
    """Writes the latest checkpoint after epochs and steps, and when SIGTERM or Ctrl-C asks training to stop.

    The checkpoint of an epoch is written just before the next one starts: by then, the validation is done, the schedule
    has made its step, and all values are logged. In mid-epoch, a checkpoint is only written after a step that is not
    followed by a validation; otherwise it is written after the next step or epoch.

    Args:
        path: The file.
        every_n_epochs: Epochs from one checkpoint to the next. auto writes one after each epoch, but at most every five
            seconds, because epochs of a few images would otherwise spend most of their time writing.
        every_n_steps: Optimiser steps from one checkpoint to the next; None writes only at the ends of epochs.

    Raises:
        InputError: For an interval below 1.
    """

    def __init__(self, path: Path, every_n_epochs: int | Literal["auto"], every_n_steps: int | None) -> None:
        for name, value in (("epochs", every_n_epochs), ("steps", every_n_steps)):
            if value not in (None, "auto") and value < 1:
                raise InputError(f"--checkpoint_every_n_{name} {value}: expected at least 1")
        self.path = path
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self._first_step = 0
        self._saved_at = -math.inf
        self._due = False
        self._signal: signal.Signals | None = None  # the one that asked this process to stop
        self._stopping = False  # whether any process was asked to stop; the same in all processes
        self._between_epochs = False

    @property
    def exists(self) -> bool:
        """Whether this process has written the file since it started training."""
        return self._saved_at > -math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the first step, and takes the signals over from Lightning, which would stop without a checkpoint."""
        self._first_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in _REASONS:
                signal.signal(number, self._ask_to_stop)  # Lightning restores the original handlers after training
            # Before each batch, Lightning would tell all processes whether the first one has received SIGTERM, which it
            # no longer notices.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves in mid-epoch."""
        batches = batch_idx + 1
        if batches % trainer.accumulate_grad_batches and batches < trainer.num_training_batches:
            return  # a checkpoint cannot hold the gradients of an unfinished step
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            self._due = True
        if trainer.world_size == 1 or trainer.global_step % STEPS_BETWEEN_QUESTIONS == 0:
            self._stopping = self._stopping or self._stops(trainer)
        if (self._due or self._stopping) and not _validates_after(trainer, batch_idx):
            self._save(trainer, between_epochs=False, stops=self._stopping)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the state at the end of the previous epoch."""
        if trainer.global_step == self._first_step:
            return
        stops = self._stops(trainer)
        if self._due or stops or self._epoch_is_due(trainer):
            self._save(trainer, between_epochs=True, stops=stops)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end of training, and ends the process if it was asked to stop during the last validation.

        A resumed run that had already ended before saves nothing: its checkpoint exists.
        """
        if trainer.global_step > self._first_step:
            self._save(trainer, between_epochs=True, stops=self._stops(trainer))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Makes Lightning resume with the next epoch if the checkpoint is written between two epochs."""
        if self._between_epochs:
            _set_to_last_batch(checkpoint["loops"]["fit_loop"])
            checkpoint["epoch"] -= 1  # Lightning writes the next one here, and never reads it

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._signal is not None:
                raise KeyboardInterrupt
            logger.warning("stopping after this step or the current validation; press Ctrl-C again to stop at once")
        self._signal = signal.Signals(number)

    def _stops(self, trainer: pl.Trainer) -> bool:
        """Whether any process was asked to stop. All of them have to save together."""
        return trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    def _epoch_is_due(self, trainer: pl.Trainer) -> bool:
        if self.every_n_epochs != "auto":
            return trainer.current_epoch % self.every_n_epochs == 0
        # Clocks differ between processes.
        return trainer.strategy.broadcast(time.monotonic() - self._saved_at >= SECONDS_BETWEEN_SAVES)

    def _save(self, trainer: pl.Trainer, *, between_epochs: bool, stops: bool = False) -> None:
        self._between_epochs = between_epochs
        trainer.save_checkpoint(self.path, weights_only=False)  # with everything that resuming needs
        self._between_epochs = False
        self._due = False
        self._saved_at = time.monotonic()
        if stops:
            number = self._signal or signal.SIGTERM  # another process may have received it
            if trainer.is_global_zero:
                logger.warning(
                    "%s after step %d: resume with the same flags and --resume %s",
                    _REASONS[number], trainer.global_step, self.path.parents[1],
                )  # fmt: skip
            end_as_stopped_by(number, trainer)


def end_as_stopped_by(number: signal.Signals, trainer: pl.Trainer) -> NoReturn:
    """Ends this process like one that was stopped by a signal.

    Args:
        number: The signal.
        trainer: Says which process this is.

    Raises:
        SIGTERMException: Always. The first process has the exit code of the signal: 143 for SIGTERM, 130 for SIGINT.
            The others have 0.
    """
    # An error in another process makes Lightning kill the first one.
    raise SIGTERMException(128 + number if trainer.is_global_zero else 0)


@contextmanager
def stops_when_terminated(trainer: pl.Trainer) -> Iterator[None]:
    """Ends with the exit code of SIGTERM if it arrives before the first step or during an evaluation.

    Lightning would skip the rest and end with exit code 0, as if everything were done.

    Args:
        trainer: The trainer that trains or evaluates.
    """
    try:
        yield
    except SIGTERMException as stopped:
        if stopped.code is not None:  # raised by `end_as_stopped_by`
            raise
    if trainer.received_sigterm:
        end_as_stopped_by(signal.SIGTERM, trainer)


def _validates_after(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether this batch is followed by a validation or the end of the epoch, which a resumed run would skip."""
    if batch_idx + 1 >= trainer.num_training_batches or trainer.should_stop:
        return True
    batches = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    return trainer.val_check_batch is not None and (batches + 1) % trainer.val_check_batch == 0


def _set_to_last_batch(fit_loop: dict[str, Any]) -> None:
    """Rewinds Lightning's counters to the end of the last batch of the completed epoch.

    This is the only state between two epochs from which Lightning resumes correctly for every kind of training length:
    it starts the next epoch, and neither validates nor logs the previous one again. (With `max_steps`, it takes any
    other state for an interrupted epoch.)
    """
    for part in ("total", "current"):
        epochs, batches = fit_loop["epoch_progress"][part], fit_loop["epoch_loop.batch_progress"][part]
        epochs["ready"] = epochs["started"] = epochs["completed"]
        epochs["processed"] = epochs["completed"] = epochs["completed"] - 1
        batches["completed"] -= 1
    # Otherwise, Lightning would count the validation batches of the completed epoch twice after resuming.
    validated = fit_loop["epoch_loop.val_loop.batch_progress"]["total"]
    validated.update(dict.fromkeys(validated, 0))
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
