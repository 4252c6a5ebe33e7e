"""Which epoch the best checkpoint of a training run is from, and what that says about the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from keypoint_detection.train.checkpoints import MONITOR
from keypoint_detection.train.evaluation_row import START_EPOCH
from keypoint_detection.wording import counted

logger = logging.getLogger(__name__)

# The best epoch counts as early within this share of all epochs. With few evaluations, it may be early by chance.
EARLY = 0.1
FEW_EVALUATIONS = 10


@dataclass(frozen=True)
class BestEpoch:
    """When in a training run its best checkpoint was written.

    Attributes:
        epochs: Epochs that its weights were trained for; 0 for the weights that the run started from.
        total: Epochs of the whole run.
        images: Number of validation images on which it was the best.
        curves: Epochs (-1 before the first step) and values, by log name.
    """

    epochs: float
    total: float
    images: int
    curves: Mapping[str, tuple[list[float], list[float]]]

    def text(self, name: str, mean_ap: float) -> str:
        """Describes it in one line.

        Args:
            name: Name of the checkpoint.
            mean_ap: Its mean AP on the validation set.
        """
        after = f"{name}: the weights after {round(self.epochs, 2):g} of {round(self.total, 2):g} epochs"
        if self._start is None:
            return after
        if self.epochs == 0:
            return f"{name}: the unchanged weights of --checkpoint, with a mean AP of {mean_ap:.3f}"
        return (
            f"{after}, with a mean AP of {mean_ap:.3f} on {counted(self.images, 'validation image')}; the weights of "
            f"--checkpoint had {self._start:.3f}"
        )

    def warn(self, collapsed: bool = False) -> bool:
        """Warns if training never improved on the weights that it started from, or soon made them worse.

        Args:
            collapsed: Whether the detector found nothing in the end, for which a lack of images is not the cause.

        Returns:
            Whether it warned. If so, training for longer will not help.
        """
        count = sum(epoch != START_EPOCH for epoch in self.curves.get(MONITOR, ([], []))[0])
        if self._start is not None and self.epochs == 0 and count:
            logger.warning(
                "no evaluation during training (of %d) was as good as the weights of --checkpoint, so best.ckpt holds "
                "those weights unchanged; a lower --learning_rate or more images may help",
                count,
            )
            return True
        losses = self._losses_since
        is_early = self.epochs <= EARLY * self.total and count > FEW_EVALUATIONS
        overfits = is_early and not collapsed and len(losses) > 1 and losses[-1] < losses[0]
        if overfits:
            logger.warning(
                "best.ckpt is from the first tenth of the epochs: of %d evaluations, no later one was as good, while "
                "the training loss fell from %.3g to %.3g, which suggests overfitting; fewer epochs, more images or "
                "more augmentation may help",
                count, losses[0], losses[-1],
            )  # fmt: skip
        return overfits

    @property
    def _start(self) -> float | None:
        """Mean AP of the weights that the run started from, if they were evaluated."""
        points = zip(*self.curves.get(MONITOR, ([], [])), strict=True)
        return next((value for epoch, value in points if epoch == START_EPOCH), None)

    @property
    def _losses_since(self) -> list[float]:
        """Training losses from the best epoch on. The curves number epochs from 0."""
        points = zip(*self.curves.get("train/loss", ([], [])), strict=True)
        return [value for epoch, value in points if epoch > self.epochs - 1.5]
