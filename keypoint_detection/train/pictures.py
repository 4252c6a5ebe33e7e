"""The pictures that training writes and logs: what the network sees, and what it predicts.

B batch, C channels, H W image, h w heatmap.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from keypoint_detection.batch import Batch
from keypoint_detection.data.datamodule import Stage
from keypoint_detection.data.sampler import Key
from keypoint_detection.errors import InputError
from keypoint_detection.heatmaps import transform_points
from keypoint_detection.markers import draw_keypoints
from keypoint_detection.picture_layout import add_legend, image_grid
from keypoint_detection.score_thresholds import rounding_of, usable_thresholds
from keypoint_detection.train.callbacks import MetricsLogger, log_prefix
from keypoint_detection.train.evaluation_row import START_EPOCH
from keypoint_detection.visualization import heatmap_panel, keypoint_panel

# Share of the training time that pictures may take.
PICTURES_SHARE = 0.005
# Approximate number of predicted heatmaps in one picture: with many channels, it shows fewer images, as it would
# otherwise be slow and huge.
HEATMAPS = 40
# The picture of augmented images: number of images, versions of each, and width of each in pixels.
IMAGES = 6
VERSIONS = 3
WIDTH = 320


class AugmentationPicture(pl.Callback):
    """Draws some training images with their labels, as augmented and mixed in the first epochs."""

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
        if not trainer.is_global_zero or trainer.global_step > 0:  # a resumed run already has it
            return
        dataset = trainer.datamodule.dataset("train")
        versions = VERSIONS if dataset.augmentation is not None else 1
        chosen = np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).astype(int).tolist()
        rows = []
        for epoch in range(versions):
            partners = [*chosen[1:], chosen[0]]
            keys = [Key(index, epoch, partner=other) for index, other in zip(chosen, partners, strict=True)]
            samples = dataset.__getitems__(keys)
            labels = [dict(zip(self.channel_names, sample.keypoints.numpy(), strict=True)) for sample in samples]
            pictures = zip(samples, labels, strict=True)
            rows.append([draw_keypoints(sample.images, true=true, width=WIDTH) for sample, true in pictures])
        picture = add_legend(image_grid(rows), dict.fromkeys(self.channel_names, ""), "ring: true keypoint")
        Image.fromarray(picture).save(self.path, quality=90)
        log_picture(trainer, "train/augmentations", self.path)


class HeatmapPictures(pl.Callback):
    """Writes and logs pictures of some images at evaluations, unless that would take too large a share of the time.

    The images are spread over the whole set, since neighbours are often frames of one video. With several processes,
    which would have to wait for one another, the first one shows images of its first batch instead.

    Args:
        metrics: Knows which validations compute the metrics.
        folder: Where the pictures are saved.
        channel_names: Names of the channels.
        max_pictures: Maximum number of images that are drawn at an evaluation. With their heatmaps, it is at most 40
            divided by the number of channels, but at least one. 0 draws none.
    """

    def __init__(self, metrics: MetricsLogger, folder: Path, channel_names: list[str], max_pictures: int = 4) -> None:
        if max_pictures < 0:
            raise InputError(f"--max_pictures {max_pictures}: expected at least 0")
        self.metrics = metrics
        self.folder = folder
        self.channel_names = channel_names
        self.max_pictures = max_pictures
        self._started = time.monotonic()
        # Seconds spent on all pictures, on those of the latest evaluation, and on choosing the images of the latter.
        self._drawing = self._latest = self._choosing = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *args: Any
    ) -> None:
        """Draws pictures at the first batch, unless that would exceed their share of the time."""
        affordable = self._drawing + self._latest <= PICTURES_SHARE * (time.monotonic() - self._started)
        # After training, pictures of the best checkpoint are drawn in any case.
        if batch_idx == 0 and self.metrics.evaluates(trainer) and (affordable or trainer.state.fn != "fit"):
            shown = self._choose("validation", trainer, pl_module, outputs, batch)
            self._draw(log_prefix(trainer), trainer, pl_module, *shown)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *args: Any
    ) -> None:
        """Draws pictures at the first batch."""
        if batch_idx == 0:
            shown = self._choose("test", trainer, pl_module, outputs, batch)
            self._draw("test", trainer, pl_module, *shown)

    def _choose(
        self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: dict[str, Tensor], batch: Batch
    ) -> tuple[dict[str, Tensor], Batch]:
        """What to draw: images from all over the set and the predictions for them, or the given batch."""
        start = time.monotonic()
        if trainer.world_size == 1 and self.max_pictures > 0:
            data, device = trainer.datamodule, pl_module.device
            dataset = data.dataset(stage)
            chosen = np.linspace(0, len(dataset) - 1, min(self.max_pictures, len(dataset))).astype(int).tolist()
            batch = dataset.collate(dataset.__getitems__([Key(index) for index in chosen]))
            batch = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)
            outputs = pl_module.validation_step(batch)
        self._choosing = time.monotonic() - start
        return outputs, batch

    def _score_thresholds(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[float]:
        """The thresholds of a checkpoint written now: those of the latest evaluation, if there was one."""
        found = self.metrics.score_thresholds if trainer.state.fn == "fit" else None
        own = (pl_module.score_thresholds if found is None else found).cpu()
        return usable_thresholds(own, rounding_of(pl_module.score_thresholds.device.type)).tolist()

    def _draw(
        self,
        stage: str,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Tensor],
        batch: Batch,
    ) -> None:
        count = min(self.max_pictures, len(batch.images))
        if not trainer.is_global_zero or count == 0:
            return
        start = time.monotonic()
        images, true = batch.images[:count].cpu(), batch.heatmaps[:count].float().cpu()
        predicted = outputs["heatmaps"][:count].float().cpu()
        data = trainer.datamodule
        annotations = data.test_annotations if stage == "test" else data.validation_annotations
        names = [annotations.name(index) if index >= 0 else "" for index in batch.indices[:count].tolist()]
        to_input = torch.linalg.inv(batch.transforms[:count].cpu().double())
        xy = transform_points(outputs["xy"][:count].cpu().double(), to_input)
        with_heatmaps = slice(max(1, HEATMAPS // len(self.channel_names)))
        pictures = {
            "heatmaps": heatmap_panel(
                images[with_heatmaps], predicted[with_heatmaps], true[with_heatmaps], self.channel_names
            ),
            "keypoints": keypoint_panel(
                images,
                xy,
                outputs["scores"][:count].cpu(),
                batch.keypoints[:count].cpu(),
                self.channel_names,
                self._score_thresholds(trainer, pl_module),
                names,
            ),
        }
        epoch = self.metrics.row.epoch(trainer)
        when = "start" if epoch == START_EPOCH else f"epoch{epoch:04d}"
        for name, picture in pictures.items():
            image = Image.fromarray(picture)
            path = self.folder / f"{stage}_{name}_{when}.jpg"
            image.save(path, quality=90)
            log_picture(trainer, f"{stage}/{name}", path)
        self._latest = self._choosing + time.monotonic() - start
        self._drawing += self._latest


def log_picture(trainer: pl.Trainer, key: str, path: Path) -> None:
    """Logs a picture to the run's wandb logger, if it has one."""
    for run_logger in trainer.loggers:
        if isinstance(run_logger, WandbLogger):
            run_logger.log_image(key, [str(path)], step=None)
