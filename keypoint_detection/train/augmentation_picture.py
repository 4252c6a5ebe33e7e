"""A picture of what training sees, made before the first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from PIL import Image

from keypoint_detection.data.sampler import Key
from keypoint_detection.train.callbacks import log_picture
from keypoint_detection.visualization import add_legend, draw_keypoints, image_grid

IMAGES = 6
VERSIONS = 3
WIDTH = 320


class AugmentationPicture(pl.Callback):
    """Draws some training images with their labels, as they come in the first epochs."""

    def __init__(self, path: Path, channel_names: list[str]) -> None:
        """Makes the callback.

        Args:
            path: File to write.
            channel_names: Names of the channels.
        """
        self.path = path
        self.channel_names = channel_names

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the picture, and logs it to wandb."""
        if not trainer.is_global_zero or self.path.exists():
            return
        dataset = trainer.datamodule.dataset("train")
        versions = VERSIONS if dataset.augmentation is not None else 1
        chosen = np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).astype(int).tolist()
        rows = []
        for epoch in range(versions):
            samples = [dataset[Key(index, epoch)] for index in chosen]
            labels = [dict(zip(self.channel_names, sample.keypoints.numpy(), strict=True)) for sample in samples]
            pictures = zip(samples, labels, strict=True)
            rows.append([draw_keypoints(sample.images, true=true, width=WIDTH) for sample, true in pictures])
        picture = add_legend(image_grid(rows), dict.fromkeys(self.channel_names, ""))
        Image.fromarray(picture).save(self.path, quality=90)
        log_picture(trainer, "train/augmentations", self.path)
