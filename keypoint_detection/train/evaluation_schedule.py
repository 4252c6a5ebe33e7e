"""When to validate: often enough to see the network learn, rarely enough to cost little, and always at the end."""

from __future__ import annotations

import math
import time
from typing import Any

import pytorch_lightning as pl

from keypoint_detection.models.progress import find_timer, may_end, most_epochs, most_steps, steps_per_epoch

EVALUATIONS_PER_RUN = 25
# Evaluations take at most about this share of a run sized in time: with many or large images, there are fewer of them.
LARGEST_SHARE = 0.1
# An image takes about this share of its time in training.
VALIDATION_COST = 1 / 3
# An interval in epochs that no run ever reaches: no validation for now.
NOT_YET = 2**31
# Batches between two looks at the clock within an epoch, since processes wait for one another at each.
BATCHES_BETWEEN_LOOKS = 10


def is_last_epoch(trainer: pl.Trainer) -> bool:
    """Whether training ends with the current epoch."""
    stops = trainer.should_stop and may_end(trainer, trainer.current_epoch + 1)
    return _reaches_last_epoch(trainer) or _reaches_last_step(trainer) or stops


def epochs_since_validation(trainer: pl.Trainer, latest: int) -> int:
    """How many epochs ago the previous validation was; at least 1, even if it was in this epoch.

    Args:
        trainer: The trainer.
        latest: Epoch of the latest validation that this process has seen, for an interval in time.
    """
    if trainer.val_check_batch is None:  # the interval is a time
        return max(1, trainer.current_epoch - latest)
    if trainer.check_val_every_n_epoch is not None:
        return trainer.check_val_every_n_epoch
    previous = (trainer.fit_loop.total_batch_idx - trainer.val_check_batch) // trainer.num_training_batches
    return max(1, trainer.current_epoch - previous)


def _reaches_last_epoch(trainer: pl.Trainer) -> bool:
    return trainer.current_epoch + 1 >= most_epochs(trainer)


def _reaches_last_step(trainer: pl.Trainer) -> bool:
    return trainer.global_step >= most_steps(trainer)


def _ends_after(trainer: pl.Trainer, last_batch: bool) -> bool:
    """Whether training ends after the current batch, which may be the last one of its epoch."""
    if _reaches_last_step(trainer) or (last_batch and _reaches_last_epoch(trainer)):
        return True
    return trainer.should_stop and may_end(trainer, trainer.current_epoch + last_batch)


class EvaluationSchedule(pl.Callback):
    """Chooses after which epochs to validate, and makes sure that training ends with a validation.

    Runs sized in epochs or steps validate after the same epochs every time. A run sized in time follows its clock; if
    it also has a maximum number of epochs or steps, the shorter of the two intervals applies. If its epochs are long,
    it validates within them too. It validates less often if validations would take more than a tenth of the time.
    """

    def __init__(self, automatic: bool) -> None:
        """Makes the callback.

        Args:
            automatic: Validate about 25 times in a run, unless `check_val_every_n_epoch` differs from Lightning's
                default. Has to be False if a `val_check_interval` is given.
        """
        self.automatic = automatic
        self._duration: float | None = None
        self._longest_interval = math.inf  # in epochs; finite if the number of epochs is limited
        self._epoch_started = 0.0
        self._training_seconds = 0.0
        self._epochs_seen = 0.0  # of a resumed epoch, only the part that was left
        self._batches_seen = 0  # of this epoch
        self._evaluation_started = self._evaluated = 0.0
        self._evaluations = 0
        self._shortest_evaluation = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the interval if the number of epochs is known."""
        timer = find_timer(trainer)
        # Of the whole run, even if it is resumed: the rest should not get as many validations as a whole run.
        self._duration = None if timer is None else timer.time_elapsed() + timer.time_remaining()
        # `on_train_epoch_start` is not called for an epoch that is resumed in the middle.
        self._epoch_started = self._evaluated = time.perf_counter()
        self.automatic = self.automatic and trainer.check_val_every_n_epoch == 1
        if not self.automatic:
            return
        epochs = min(most_epochs(trainer), most_steps(trainer) / steps_per_epoch(trainer))
        if math.isfinite(epochs):
            trainer.check_val_every_n_epoch = max(1, int(epochs // EVALUATIONS_PER_RUN))
            self._longest_interval = trainer.check_val_every_n_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of an epoch."""
        self._epoch_started = time.perf_counter()
        self._batches_seen = 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of an evaluation."""
        self._evaluation_started = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures how long an evaluation takes."""
        if not trainer.sanity_checking:
            self._evaluated = time.perf_counter()
            self._evaluations += 1
            self._shortest_evaluation = min(self._shortest_evaluation, self._evaluated - self._evaluation_started)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validates after the last batch of the training, whatever the interval, and within long epochs."""
        last_batch = batch_idx + 1 >= trainer.num_training_batches
        self._batches_seen += 1
        if self.automatic and self._duration is not None:
            if last_batch:
                trainer.val_check_batch = trainer.num_training_batches
                self._end_epoch(trainer, self._duration)
            elif (batch_idx + 1) % BATCHES_BETWEEN_LOOKS == 0:
                self._look_at_clock(trainer, self._duration, batch_idx + 1)
        if _ends_after(trainer, last_batch):  # whatever the interval in epochs, batches or time
            trainer.check_val_every_n_epoch = 1
            trainer._val_check_time_interval = None
            trainer.val_check_batch = batch_idx + 1

    def _end_epoch(self, trainer: pl.Trainer, duration: float) -> None:
        """Validates after this epoch if that is due, or would be due before the middle of the next one."""
        now = time.perf_counter()
        self._training_seconds += now - self._epoch_started
        self._epochs_seen += self._batches_seen / trainer.num_training_batches
        seconds_per_epoch = self._training_seconds / self._epochs_seen
        interval = min(duration / EVALUATIONS_PER_RUN, self._longest_interval * seconds_per_epoch)
        interval = self._affordable(trainer, interval, seconds_per_epoch / trainer.num_training_batches)
        # Clocks differ between processes, and a process that validates alone would wait for the others for ever.
        due = trainer.strategy.broadcast(now - self._evaluated + seconds_per_epoch / 2 >= interval)
        trainer.check_val_every_n_epoch = 1 if due else NOT_YET

    def _look_at_clock(self, trainer: pl.Trainer, duration: float, batches: int) -> None:
        """Validates after this many batches of an epoch if that is due and the end of the epoch is not near."""
        now = time.perf_counter()
        seconds_per_batch = (now - self._epoch_started) / self._batches_seen
        interval = self._affordable(trainer, duration / EVALUATIONS_PER_RUN, seconds_per_batch)
        left = seconds_per_batch * (trainer.num_training_batches - batches)
        due = trainer.strategy.broadcast(now - self._evaluated >= interval and left >= interval / 2)
        trainer.val_check_batch = batches if due else trainer.num_training_batches
        if due:
            trainer.check_val_every_n_epoch = 1

    def _affordable(self, trainer: pl.Trainer, interval: float, seconds_per_batch: float) -> float:
        """The interval in seconds, or a longer one if evaluations would take more than their share of it."""
        seconds = self._shortest_evaluation
        if self._evaluations < 2:  # the first one includes setup and pictures, and says little about the others
            training_batches = _validation_images(trainer) / trainer.datamodule.batch_size
            seconds = min(seconds, VALIDATION_COST * seconds_per_batch * training_batches)
        return max(interval, seconds / LARGEST_SHARE)


def _validation_images(trainer: pl.Trainer) -> int:
    """Images in a validation of this process."""
    batches = sum(trainer.num_val_batches)  # 0 until the first validation, if there is no sanity check
    return sum(map(len, trainer.val_dataloaders.batch_sampler.batches[:batches])) if batches else 0
