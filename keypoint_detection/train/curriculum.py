"""How training images change in the course of training: small at first, without augmentation in the end."""

from __future__ import annotations

from functools import partial

import pytorch_lightning as pl

from keypoint_detection.errors import InputError
from keypoint_detection.models.progress import TrainingProgress, has_end, steps_per_epoch

# Sizes grow in a few steps, so that kernels are tuned or compiled for only a few sizes.
STEPS = 4
SMALLEST_SCALE = 0.5


class Curriculum(pl.Callback):
    """Tells the loader how large the images of each batch are, and whether to augment them at random.

    Small images teach more per second (Howard 2018, training ImageNet in minutes). Augmented images teach what may
    vary; unchanged ones teach where exactly the keypoints are in real images (Ge et al. 2021: YOLOX also turns its
    strong augmentation off at the end). A training run without an end shows all images augmented and at full size.

    Args:
        augmented_share: Share of the training, in [0, 1], during which images are augmented at random; after that, they
            are shown unchanged.
        progressive_resizing: Share of the training, in [0, 1], during which the images grow from half their size to
            full size, but are never smaller than 128 px. 0 trains at full size throughout.
    """

    def __init__(self, *, augmented_share: float, progressive_resizing: float) -> None:
        shares = {"progressive_resizing": progressive_resizing, "augmented_share": augmented_share}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"--{name} {share}: expected a number in [0, 1]")
        self.progressive_resizing = progressive_resizing
        self.augmented_share = augmented_share
        self._progress: TrainingProgress | None = None

    def scale(self, progress: float) -> float:
        """Scale of the images.

        Args:
            progress: Share of the training that is done, in [0, 1].

        Returns:
            A factor in [0.5, 1], rounded down to one of a few steps.
        """
        if progress >= self.progressive_resizing:
            return 1.0
        step = int(progress / self.progressive_resizing * STEPS)
        return SMALLEST_SCALE + (1 - SMALLEST_SCALE) * step / STEPS

    def augments(self, progress: float) -> bool:
        """Whether images are augmented at random.

        Args:
            progress: Share of the training that is done, in [0, 1].
        """
        return progress < self.augmented_share or self.augmented_share == 1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lets the loader ask for the scale and augmentation of each batch."""
        if stage == "fit" and (self.progressive_resizing > 0 or self.augmented_share < 1) and has_end(trainer):
            trainer.datamodule.curriculum = partial(self._of_batch, trainer)

    def _of_batch(self, trainer: pl.Trainer, epoch: int, batch: int) -> tuple[float, bool]:
        # The length of the training is not known before its loader exists.
        self._progress = self._progress or TrainingProgress(trainer)
        progress = self._progress(epoch * steps_per_epoch(trainer) + batch // trainer.accumulate_grad_batches)
        return self.scale(progress), self.augments(progress)
