"""Training images that grow: small ones first, which teach more per second, and full ones in the end."""

from __future__ import annotations

import math
from functools import partial

import pytorch_lightning as pl

from keypoint_detection.errors import InputError
from keypoint_detection.models.optimization import TrainingProgress

# Sizes come in few steps, so that kernels which are tuned or compiled to a size are made a few times only.
STEPS = 4
SMALLEST_SCALE = 0.5


class ProgressiveResizing(pl.Callback):
    """Grows the training images from half their size to all of it (after Howard 2018, training ImageNet in minutes).

    Args:
        progressive_resizing: Share of the training, in [0, 1], in which the images grow from half their size to all of
            it. 0 trains at the full size throughout. Images never get smaller than 128 px by it.
    """

    def __init__(self, progressive_resizing: float = 0.6) -> None:
        if not 0 <= progressive_resizing <= 1:
            raise InputError(f"--progressive_resizing {progressive_resizing}: expected a number in [0, 1]")
        self.progressive_resizing = progressive_resizing
        self._progress: TrainingProgress | None = None

    def scale(self, progress: float) -> float:
        """Factor of the images' size.

        Args:
            progress: Share of the training that is done, in [0, 1].

        Returns:
            A factor in [0.5, 1], rounded down to a few steps.
        """
        if progress >= self.progressive_resizing:
            return 1.0
        step = int(progress / self.progressive_resizing * STEPS)
        return SMALLEST_SCALE + (1 - SMALLEST_SCALE) * step / STEPS

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lets the loader ask for the size of each batch."""
        if self.progressive_resizing and stage == "fit":
            trainer.datamodule.train_scale = partial(self._batch_scale, trainer)

    def _batch_scale(self, trainer: pl.Trainer, epoch: int, batch: int) -> float:
        # The length of the training is known once its loader is made.
        self._progress = self._progress or TrainingProgress(trainer)
        # Loader workers ask for their first batches before Lightning has counted those of an epoch.
        counted = math.isfinite(trainer.num_training_batches)
        per_epoch = int(trainer.num_training_batches) if counted else len(trainer.train_dataloader)
        return self.scale(self._progress((epoch * per_epoch + batch) // trainer.accumulate_grad_batches))
