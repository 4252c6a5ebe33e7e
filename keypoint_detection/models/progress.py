"""The progress of a training run: when it ends, how long its epochs are, and what share of it is completed."""

from __future__ import annotations

import math

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer

from keypoint_detection.errors import InputError

# Several processes ask one another only every so many steps for things that are not urgent, such as the time or whether
# to stop, because each question waits for their devices.
STEPS_BETWEEN_QUESTIONS = 10


def asks_for_the_time(trainer: pl.Trainer, step: int) -> bool:
    """Whether the processes of a training run ask the first one for the time after `step` optimiser steps.

    They do after each of the first ten steps, since there may be no more, and then after every tenth. A single process
    always does.
    """
    return trainer.world_size == 1 or step < STEPS_BETWEEN_QUESTIONS or step % STEPS_BETWEEN_QUESTIONS == 0


def has_end(trainer: pl.Trainer) -> bool:
    """Whether a number of epochs or steps, or a time, limits the training run."""
    return find_timer(trainer) is not None or math.isfinite(min(most_epochs(trainer), most_steps(trainer)))


def find_timer(trainer: pl.Trainer) -> Timer | None:
    """The timer that ends the training after a time limit, if there is one."""
    return next((c for c in trainer.callbacks if isinstance(c, Timer) and c.time_remaining() is not None), None)


def most_epochs(trainer: pl.Trainer) -> float:
    """Number of epochs after which the training ends; infinity if not set."""
    return math.inf if trainer.max_epochs == -1 else trainer.max_epochs


def most_steps(trainer: pl.Trainer) -> float:
    """Number of optimiser steps after which the training ends; infinity if not set."""
    return math.inf if trainer.max_steps == -1 else trainer.max_steps


def may_end(trainer: pl.Trainer, epochs: int) -> bool:
    """Whether `min_epochs` and `min_steps` allow the training to end after this number of completed epochs."""
    return epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)


def batches_per_epoch(trainer: pl.Trainer) -> int:
    """Number of batches in an epoch.

    Also works before Lightning has counted them: workers of the loader fetch their first batches earlier.
    """
    if math.isfinite(trainer.num_training_batches):
        return int(trainer.num_training_batches)
    return limit_batches(len(trainer.train_dataloader), trainer.limit_train_batches)


def steps_per_epoch(trainer: pl.Trainer) -> int:
    """Number of optimiser steps in an epoch. The last one may accumulate fewer batches than the others."""
    return math.ceil(batches_per_epoch(trainer) / trainer.accumulate_grad_batches)


def limit_batches(count: int, limit: float) -> int:
    """Number of batches of an epoch that Lightning's `limit_train_batches` leaves; a float is a share of them."""
    return min(count, limit) if isinstance(limit, int) else int(count * limit)


class TrainingProgress:
    """The progress of a training run, by its steps or its time, whichever is further.

    Args:
        trainer: The trainer. Its `max_epochs`, `max_steps` and `max_time` set the end.

    Raises:
        InputError: when nothing sets the end of the training run.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._total_steps: float | None = None
        self._latest: tuple[int, float] | None = None
        self._share_of_time: float | None = None  # the latest answer of the first process
        self._timer = find_timer(trainer)
        if not has_end(trainer):
            raise InputError(
                "the learning rate schedule needs to know how long the training is: set max_epochs, max_steps or "
                "max_time, or choose learning_rate_schedule constant with a learning_rate_warmup of 0"
            )

    def _count_steps(self) -> float:
        """Return the number of optimiser steps of the whole training run, which may be infinite."""
        if self._total_steps is not None:
            return self._total_steps
        trainer = self._trainer
        steps = trainer.estimated_stepping_batches
        if trainer.max_epochs > 0 and math.isinf(trainer.num_training_batches) and trainer.train_dataloader is not None:
            return min(steps_per_epoch(trainer) * trainer.max_epochs, most_steps(trainer))
        self._total_steps = steps if steps > 0 else math.inf
        return self._total_steps

    def __call__(self, step: int) -> float:
        """Return the share of the training that is completed after `step` optimiser steps, in [0, 1].

        Another call for the same step returns the same value.
        """
        if self._latest is None or self._latest[0] != step:
            self._latest = step, self._share(step)
        return self._latest[1]

    def _share(self, step: int) -> float:
        # Not before training starts: counting creates the loader, which must know where training resumes.
        progress = step / self._count_steps() if step > 0 else 0.0
        if self._timer is not None:
            if self._share_of_time is None or asks_for_the_time(self._trainer, step):
                self._share_of_time = self._ask_for_the_time()
            progress = max(progress, self._share_of_time)
        return min(max(progress, 0.0), 1.0)

    def _ask_for_the_time(self) -> float:
        elapsed = self._timer.time_elapsed()  # continues from the previous value when a run is resumed
        total = elapsed + self._timer.time_remaining()
        share = elapsed / total if total > 0 else 1.0
        if self._trainer.world_size > 1:
            # Clocks differ between processes, and different learning rates would make their weights drift apart.
            share = self._trainer.strategy.broadcast(share)
        return share
