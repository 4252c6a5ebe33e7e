"""The end of a training run: evaluates its best checkpoint, and draws its curves."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytorch_lightning as pl

from keypoint_detection.curves import plot_curves
from keypoint_detection.log_names import log_name, parse_log_name
from keypoint_detection.models.checkpoint_file import load_checkpoint
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.progress import steps_per_epoch
from keypoint_detection.report import EPOCH_AXIS
from keypoint_detection.train.best_epoch import BestEpoch
from keypoint_detection.train.callbacks import MetricsLogger
from keypoint_detection.train.collapse import CollapseWarning
from keypoint_detection.train.evaluation_row import START_EPOCH
from keypoint_detection.train.final_report import FoundImages, log_report, write_final_report
from keypoint_detection.train.last_checkpoint import stops_when_terminated
from keypoint_detection.train.metrics_file import STEP
from keypoint_detection.train.pictures import log_picture
from keypoint_detection.train.run_folder import CURVES_FILE, REPORT_FILE, RunFolder
from keypoint_detection.train.time_shares import TimeShares, advise
from keypoint_detection.train.training_result import TrainingResult
from keypoint_detection.train.wandb_logger import RunLogger, finish_wandb, log_checkpoint_artifact

logger = logging.getLogger(__name__)

HARDLY_LEARNED = 0.2  # F1
# Stages and kinds of the values that `curves.png` shows.
CURVES = {
    *((stage, kind) for stage in ("train", "validation") for kind in ("loss", "gt_loss")),
    *(("validation", kind) for kind in ("AP", "meanAP", "median_distance")),
    (None, "learning_rate"),
}


def finish(trainer: pl.Trainer, folder: RunFolder) -> TrainingResult:
    """Evaluates the best checkpoint, on the test set too if there is one, draws the curves and writes the report.

    Args:
        trainer: The trainer, after training.
        folder: Folder of the run.

    Returns:
        The result of the training run.
    """
    # Under SLURM, Lightning would evaluate the weights saved at an interruption, whichever weights it is given.
    if trainer.is_global_zero:
        for path in folder.requeued:
            path.unlink()
    trainer.strategy.barrier()
    metrics = next(callback for callback in trainer.callbacks if isinstance(callback, MetricsLogger))
    shares = next(callback for callback in trainer.callbacks if isinstance(callback, TimeShares))
    if shares.seconds["step"]:  # there are no steps if the run had already ended before it was resumed
        logger.info(shares.summary(advise(trainer.train_dataloader, trainer)))
    else:
        logger.info("training had already ended")
    best = folder.checkpoints / "best.ckpt"
    if not best.exists():  # no evaluation saw a single true keypoint
        best = folder.checkpoints / "last.ckpt"
    detector = KeypointDetector.load_from_checkpoint(best, map_location="cpu").eval()
    saved, steps = load_checkpoint(best), steps_per_epoch(trainer)
    metrics.row.checkpoint_epoch = saved["epoch"]
    found = FoundImages()
    trainer.callbacks.append(found)
    logger.info("evaluating %s and writing the report", best.name)  # slow with large images
    with stops_when_terminated(trainer):
        trainer.validate(detector, datamodule=trainer.datamodule, verbose=False)
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    collapse = next(callback for callback in trainer.callbacks if isinstance(callback, CollapseWarning))
    curves = read_curves(folder.path / "metrics.csv", steps) if trainer.is_global_zero else {}
    images = len(trainer.datamodule.validation_annotations)
    origin = BestEpoch(saved["global_step"] / steps, trainer.global_step / steps, images, curves)
    if trainer.is_global_zero:
        gets_worse = best.stem == "best" and origin.warn(collapse.advice is not None)
        warn_of_hardly_learned(values, list(detector.hparams.keypoint_channels), collapse.advice, gets_worse)
    if trainer.datamodule.test_annotations is not None:
        with stops_when_terminated(trainer):
            trainer.test(detector, datamodule=trainer.datamodule, verbose=False)
        values |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    text = origin.text(best.name, values.get("best/meanAP", math.nan)) if best.stem == "best" else ""
    result = TrainingResult(
        detector, folder.path, best, values, metrics.threshold_distances, metrics.threshold_unit, text
    )
    if trainer.is_global_zero:
        names = list(detector.hparams.keypoint_channels)
        unit = {"pixel": "pixels", "image": "diagonals of the image"}[metrics.threshold_unit]
        plot_curves(curves, folder.path / CURVES_FILE, EPOCH_AXIS, names, unit)
        write_final_report(trainer, result, found, curves)
        log_picture(trainer, "curves", folder.path / CURVES_FILE)
    for run_logger in trainer.loggers:
        if isinstance(run_logger, RunLogger):
            log_checkpoint_artifact(run_logger, best)
            log_report(run_logger, folder.path / REPORT_FILE)
            finish_wandb(run_logger)
    if trainer.is_global_zero:
        folder.record_end(trainer.global_step, text)
    detector.trainer = None  # with its data module, which may hold a gigabyte of images
    detector.cpu()
    return result


def warn_of_hardly_learned(
    metrics: Mapping[str, float], channel_names: Sequence[str], advice: str | None = None, gets_worse: bool = False
) -> None:
    """Warns of channels that `predict` will not detect reliably at any score threshold.

    Args:
        metrics: Values of the best checkpoint on the validation set, named `best/<name>`.
        channel_names: Names of the channels.
        advice: What to try if no channel was learned; None unless training has collapsed.
        gets_worse: Whether training was too long already.
    """
    known = {name: metrics.get(log_name("best_f1", name, stage="best"), math.nan) for name in channel_names}
    weak = [name for name, f1 in known.items() if f1 < HARDLY_LEARNED]
    if weak:
        some_learned = any(f1 >= HARDLY_LEARNED for f1 in known.values())
        usual = "look at the labels and at augmentations.jpg, or label more images"
        if not gets_worse:
            longer = "if the validation loss still falls (curves.png), train longer or with a larger --learning_rate"
            usual = f"{longer}; otherwise {usual}"
        logger.warning(
            "hardly learned: %s (F1 below %g at the best score threshold), so predict will miss most of these "
            "keypoints, or most detections will be wrong; %s",
            ", ".join(weak), HARDLY_LEARNED, usual if some_learned or advice is None else f"try {advice}",
        )  # fmt: skip


def read_curves(path: Path, steps: int) -> dict[str, tuple[list[float], list[float]]]:
    """Reads what was logged during training.

    Args:
        path: `metrics.csv` of a run.
        steps: Number of optimiser steps in an epoch, in case the last epoch was not completed.

    Returns:
        Epochs, counted from 0 as everywhere, and values, by name. A value from the middle of an epoch lies between the
        number of the previous epoch and its own. A value from before the first step is at -1.
    """
    if not path.exists():  # --fast_dev_run logs nothing
        return {}
    points: dict[str, list[tuple[int, int, float]]] = {}
    last_steps = {START_EPOCH: -1}  # of each epoch
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        said = {name: parse_log_name(name) for name in reader.fieldnames or ()}
        shown = [name for name, parts in said.items() if (parts.stage, parts.kind) in CURVES]
        for row in reader:
            step, epoch = int(row[STEP]), int(row["epoch"] or 0)
            for name in shown:
                if row[name]:
                    points.setdefault(name, []).append((step, epoch, float(row[name])))
                    if epoch != START_EPOCH:
                        last_steps[epoch] = step
    starts = dict(zip([*last_steps][1:], last_steps.values(), strict=False))
    final = next(reversed(last_steps))
    if final in starts:  # if the last epoch was not completed, estimate where it would have ended
        last_steps[final] = max(last_steps[final], starts[final] + steps)

    def place(step: int, epoch: int) -> float:
        length = last_steps[epoch] - starts[epoch] if epoch in starts else 0
        return epoch - (last_steps[epoch] - step) / length if length else float(epoch)

    return {
        name: ([place(step, epoch) for step, epoch, _ in found], [value for *_, value in found])
        for name, found in points.items()
    }
