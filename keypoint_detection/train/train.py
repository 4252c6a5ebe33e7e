"""Trains a keypoint detector: `python keypoint_detection/train/train.py --flags`, or `fit(...)` from Python."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the script's own folder, which Python puts first, must not hide other modules
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger

from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.models.backbones import BACKBONES
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.losses import LOSSES
from keypoint_detection.train import flags
from keypoint_detection.train.callbacks import HeatmapPictures, LossLogger, MetricsLogger
from keypoint_detection.train.checkpoints import create_checkpoint_callbacks
from keypoint_detection.train.ema import ExponentialMovingAverage
from keypoint_detection.train.evaluation_schedule import EvaluationSchedule
from keypoint_detection.train.recipe import Recipe, choose_recipe
from keypoint_detection.train.result import TrainingResult
from keypoint_detection.train.run_folder import RunFolder, provenance
from keypoint_detection.train.trainer import create_trainer
from keypoint_detection.train.wandb_logger import (
    create_wandb_logger,
    finish_wandb,
    log_checkpoint_artifact,
    sweep_overrides,
)
from keypoint_detection.train.watch import CollapseWarning, RelativeEarlyStopping, TimeShares

logger = logging.getLogger(__name__)


def fit(**hyperparameters: Any) -> TrainingResult:
    """Trains a detector, as the command line does.

    Args:
        **hyperparameters: The flags of `keypoint-detection train -h` by name. An unknown name is an error.

    Returns:
        The detector with its best weights, its metrics and the folder of its run.

    Raises:
        InputError: If a hyperparameter or the data set is not usable.
    """
    return train(flags.parse_hyperparameters(flags.build_parser(), hyperparameters).as_dict())


def train(config: dict[str, Any]) -> TrainingResult:
    """Trains with validated hyperparameters.

    Args:
        config: A value for every flag.

    Returns:
        See `fit`.
    """
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    datamodule, recipe = prepare_data(config)
    folder = flags.call(RunFolder.create, config, name=config["wandb_name"])
    config = {**config, **recipe.values()}
    channels = list(datamodule.channel_names)
    config["keypoint_channel_max_keypoints"] = datamodule.keypoint_channel_max_keypoints
    detector = build_detector(config, channels)
    metrics = flags.call(MetricsLogger, config, channel_names=channels)
    shares = TimeShares()
    callbacks = [
        EvaluationSchedule(automatic=config["ap_epoch_freq"] == "auto"),
        *([flags.call(ExponentialMovingAverage, config)] if config["ema_decay"] else []),
        LossLogger(channels),
        metrics,
        flags.call(HeatmapPictures, config, metrics=metrics, folder=folder.pictures, channel_names=channels),
        LearningRateMonitor(logging_interval="epoch"),
        flags.call(RelativeEarlyStopping, config),
        CollapseWarning(),
        shares,
        *flags.call(create_checkpoint_callbacks, config, folder=folder.checkpoints),
    ]
    folder.write_json("split.json", datamodule.split)
    folder.write_json("run.json", provenance(datamodule.split) | {"chosen": recipe.reasons})
    wandb_logger = flags.call(create_wandb_logger, config, run_dir=folder.path, hyperparameters=config)
    loggers = [CSVLogger(folder.path, name="", version=""), *([wandb_logger] if wandb_logger else [])]
    loggers[0].log_hyperparams(config)
    trainer = flags.call(
        create_trainer,
        config,
        config=config,
        folder=folder,
        callbacks=callbacks,
        loggers=loggers,
        batches_per_epoch=len(datamodule.train_dataloader()),
    )
    trainer.fit(detector, datamodule=datamodule)
    logger.info(shares.summary())
    return finish(trainer, folder, datamodule, metrics, wandb_logger)


def prepare_data(config: Mapping[str, Any]) -> tuple[KeypointsDataModule, Recipe]:
    """Reads and checks the data, and makes the choices that depend on it.

    Args:
        config: A value for every flag.

    Returns:
        The data module, ready to load, and the choices.
    """
    datamodule = flags.call(
        KeypointsDataModule, config, augmentation=flags.call(Augmentation, config), heatmap_sigma=None,
        heatmap_stride=None, image_size=None, batch_size="auto",
    )  # fmt: skip
    datamodule.setup()
    accelerator = "cpu" if config["accelerator"] == "cpu" or not torch.accelerator.is_available() else "gpu"
    recipe = flags.call(
        choose_recipe,
        config,
        annotations=datamodule.train_annotations,
        sizes=datamodule.train_sizes,
        accelerator=accelerator,
    )
    datamodule.heatmap_sigma, datamodule.heatmap_stride = recipe.heatmap_sigma, recipe.heatmap_stride
    datamodule.image_size, datamodule.batch_size = recipe.image_size, recipe.batch_size
    return datamodule, recipe


def build_detector(config: Mapping[str, Any], channels: list[str]) -> KeypointDetector:
    """Makes the detector that the flags describe.

    Args:
        config: A value for every flag, `auto` replaced.
        channels: Names of the channels.

    Returns:
        The untrained detector.
    """
    for registry, name in ((BACKBONES, config["backbone_type"]), (LOSSES, config["loss"])):
        for flag in flags.unused_registry_flags(registry, name, config):
            logger.warning("--%s has no effect: %s does not take it", flag, name)
    return flags.call(
        KeypointDetector,
        config,
        keypoint_channels=channels,
        backbone=flags.registry_arguments(BACKBONES, config["backbone_type"], config),
        loss_arguments=flags.registry_arguments(LOSSES, config["loss"], config),
    )


def finish(
    trainer: pl.Trainer, folder: RunFolder, datamodule: KeypointsDataModule, metrics: MetricsLogger, wandb_logger: Any
) -> TrainingResult:
    """Evaluates the best checkpoint on the test set, if there is one, and gathers what the training came to."""
    best = folder.checkpoints / "best.ckpt"
    if not best.exists():  # no evaluation found a single true keypoint
        best = folder.checkpoints / "last.ckpt"
    detector = KeypointDetector.load_from_checkpoint(best, map_location="cpu")
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if datamodule.test_annotations is not None:
        trainer.test(detector, datamodule=datamodule, verbose=False)
        values |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    log_checkpoint_artifact(wandb_logger, best)
    finish_wandb(wandb_logger)
    return TrainingResult(detector, folder.path, best, values, metrics.threshold_distances)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains with the flags of a command line, and the parameters of a wandb sweep over them.

    Args:
        arguments: The flags; those of the process where none are given.

    Returns:
        The exit code.
    """
    parser = flags.build_parser()
    config = parser.parse_args(list(arguments) if arguments is not None else None).as_dict()
    overrides = sweep_overrides()
    if overrides:
        config = parser.parse_object({**config, **overrides}).as_dict()
    result = train(config)
    sys.stdout.write(f"\n{result.table()}\n\nrun folder: {result.run_dir}\n")
    return 0


if __name__ == "__main__":
    from keypoint_detection.cli import run

    sys.exit(run("keypoint_detection.train.train", sys.argv[1:]))
