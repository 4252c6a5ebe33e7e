"""`report.html` of a run: its validation set with the best checkpoint, and its curves."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from keypoint_detection.batch import Batch
from keypoint_detection.errors import InputError
from keypoint_detection.evaluation.images import add_heatmaps, gather_images, images_of_batch
from keypoint_detection.log_names import log_name, parse_log_name
from keypoint_detection.processes import Processes
from keypoint_detection.report import ReportData, ReportImage, run_information, worst_images, write_report
from keypoint_detection.score_thresholds import rounding_of, usable_thresholds
from keypoint_detection.train.run_folder import REPORT_FILE
from keypoint_detection.train.training_result import TrainingResult
from keypoint_detection.train.wandb_logger import RunLogger

logger = logging.getLogger(__name__)

# Limits to what the report costs at the end of a training run.
MAX_IMAGES = 100
MAX_BYTES = 8_000_000
MAX_HEATMAPS = 24  # each needs another pass of the network


class FoundImages(pl.Callback):
    """Keeps the detections of the validation and the test at the end of a training run.

    Attributes:
        images: True keypoints and detections of each image by its index in the set, for `validation` and `test` if they
            ran.
    """

    def __init__(self) -> None:
        self.images: dict[str, dict[int, ReportImage]] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets earlier detections."""
        self.images["validation"] = {}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Adds the detections of the batch."""
        annotations = trainer.datamodule.validation_annotations
        self.images["validation"] |= images_of_batch(annotations, batch, outputs["xy"], outputs["scores"])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collects the images of all processes."""
        self._gather("validation", trainer, pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets earlier detections."""
        self.images["test"] = {}

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Adds the detections of the batch."""
        annotations = trainer.datamodule.test_annotations
        self.images["test"] |= images_of_batch(annotations, batch, outputs["xy"], outputs["scores"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collects the images of all processes."""
        self._gather("test", trainer, pl_module)

    def _gather(self, stage: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        processes = Processes(str(pl_module.device), trainer.global_rank, trainer.world_size)
        self.images[stage] = gather_images(self.images[stage], processes)


def write_final_report(
    trainer: pl.Trainer,
    result: TrainingResult,
    found: FoundImages,
    curves: Mapping[str, tuple[list[float], list[float]]],
) -> None:
    """Writes the report. An unreadable image or a full disk costs the report, but does not fail the training run.

    Without a validation, as with `--limit_val_batches 0`, there is nothing to report.

    Args:
        trainer: The trainer, after it has validated the best checkpoint.
        result: The result of the training run. Its detector moves to the trainer's device.
        found: What that checkpoint detected.
        curves: Epochs and values by log name.
    """
    images = found.images.get("validation")
    if images is None:
        logger.info("no report was written: no image was validated")
        return
    detector = result.detector
    distances = _pixel_distances(result, images)
    # If images differ in size, distances in fractions of the diagonal are different distances in pixels for each.
    in_pixels = result.threshold_unit == "pixel" or len(set(_diagonals(images))) == 1
    if in_pixels:
        curves = {_in_pixels(name, distances): curve for name, curve in curves.items()}
    logged = {name.removeprefix("best/"): value for name, value in result.metrics.items() if name.startswith("best/")}
    thresholds = usable_thresholds(detector.score_thresholds.cpu(), rounding_of(trainer.strategy.root_device.type))
    data = ReportData(
        title=f"{result.run_dir.name}: validation set, {result.best_checkpoint.stem} checkpoint",
        channel_names=list(detector.hparams.keypoint_channels),
        threshold_distances=sorted(set(distances.values())),
        images=list(images.values()),
        score_thresholds=thresholds.tolist(),
        metrics=logged if result.threshold_unit == "pixel" else {},
        test_images=list(found.images.get("test", {}).values()),
        curves=curves,
        curves_unit="px" if in_pixels else "of the image's diagonal",
        note=_note_on_fractions(result, found),
        run_info=run_information(run=str(result.run_dir), labels=str(trainer.datamodule.validation_annotations.source)),
        max_images=MAX_IMAGES,
        max_bytes=MAX_BYTES,
    )
    try:
        indices = list(images)
        worst = [indices[position] for position in worst_images(data)[:MAX_HEATMAPS]]
        detector.to(trainer.strategy.root_device)
        dataset = trainer.datamodule.dataset("validation")
        add_heatmaps(detector, dataset, {index: images[index] for index in worst})
        write_report(data, result.run_dir / REPORT_FILE)
    except (InputError, OSError) as error:
        logger.warning("no report was written: %s", error)


def log_report(run_logger: RunLogger, path: Path) -> None:
    """Copies the report, if it was written, to the files of a wandb run, which uploads it as it is."""
    if run_logger.lost or rank_zero_only.rank > 0 or not path.exists():
        return
    run = run_logger.experiment
    copy = shutil.copy(path, run.dir)
    try:
        run.save(copy, base_path=run.dir, policy="now")
    except OSError as error:
        run_logger.lose(error)


def _pixel_distances(result: TrainingResult, images: Mapping[int, ReportImage]) -> dict[float, float]:
    """Each threshold distance in pixels; fractions of the diagonal are converted with the median image.

    If all images have the same size, these are exactly the distances of the metrics, so that the report agrees with
    them.
    """
    if result.threshold_unit == "pixel":
        return {distance: distance for distance in result.threshold_distances}
    diagonals = _diagonals(images)
    median = float(np.median(diagonals)) if diagonals else 1.0
    pixels = {distance: distance * median for distance in result.threshold_distances}
    if len(set(diagonals)) == 1:
        return {distance: float(f"{value:.5g}") for distance, value in pixels.items()}
    return {distance: round(value, 1) or float(f"{value:.2g}") for distance, value in pixels.items()}


def _note_on_fractions(result: TrainingResult, found: FoundImages) -> str:
    """Explains why the report's numbers differ from those of the training run; empty if they do not."""
    sizes = {diagonal for images in found.images.values() for diagonal in _diagonals(images)}
    if result.threshold_unit == "pixel" or len(sizes) < 2:
        return ""
    fractions = " and ".join(f"{distance:g}" for distance in result.threshold_distances)
    return (
        f"Training measured within {fractions} of each image's diagonal, so the numbers in metrics.csv differ: here, "
        "all images are measured within the distances in pixels that these fractions give for the median validation "
        "image."
    )


def _diagonals(images: Mapping[int, ReportImage]) -> list[float]:
    return [float(np.hypot(image.width, image.height)) for image in images.values()]


def _in_pixels(name: str, distances: Mapping[float, float]) -> str:
    """The log name of a curve, with its distance, if any, in pixels."""
    parsed = parse_log_name(name)
    pixels = {float(f"{distance:g}"): value for distance, value in distances.items()}
    return log_name(*parsed._replace(distance=pixels.get(parsed.distance, parsed.distance)))
