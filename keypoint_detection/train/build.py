"""From hyperparameters to the parts of a training run: data, detector and callbacks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.geometry import parse_image_size
from keypoint_detection.data.loading import check_num_workers
from keypoint_detection.data.splits import check_ratio
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.errors import InputError
from keypoint_detection.files import check_given
from keypoint_detection.flags import call
from keypoint_detection.metrics.distances import parse_distances
from keypoint_detection.models.backbones import BACKBONES, Backbone
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.hyperparameters import MAX_KEYPOINTS
from keypoint_detection.models.losses import LOSSES, LossTargets, evaluate_loss
from keypoint_detection.train import flags
from keypoint_detection.train.bad_loss import StopAtBadLoss
from keypoint_detection.train.busy_cores import BusyCores
from keypoint_detection.train.callbacks import LossLogger, MetricsLogger
from keypoint_detection.train.checkpoints import create_checkpoint_callbacks
from keypoint_detection.train.collapse import CollapseWarning
from keypoint_detection.train.curriculum import Curriculum
from keypoint_detection.train.device_speed import DeviceSpeed, is_ampere
from keypoint_detection.train.early_stopping import RelativeEarlyStopping
from keypoint_detection.train.ema import ExponentialMovingAverage
from keypoint_detection.train.evaluation_row import EvaluationRow
from keypoint_detection.train.evaluation_schedule import EvaluationSchedule
from keypoint_detection.train.image_sizes import warn_of_fine_distances, warn_of_large_parts
from keypoint_detection.train.memory import kept_bytes
from keypoint_detection.train.pictures import AugmentationPicture, HeatmapPictures
from keypoint_detection.train.recipe import Device, Recipe, choose_recipe
from keypoint_detection.train.resume_state import ResumeState
from keypoint_detection.train.run_folder import RunFolder
from keypoint_detection.train.start_evaluation import StartEvaluation
from keypoint_detection.train.time_shares import TimeShares
from keypoint_detection.wording import counted, first_line

logger = logging.getLogger(__name__)

STRIDES = (4, 2, 1)
# Flags that name a file or a folder. A backbone checks its own.
PATHS = (
    "json_dataset_path", "json_validation_dataset_path", "json_test_dataset_path", "image_dataset_path",
    "image_validation_dataset_path", "image_test_dataset_path", "run_dir", "resume", "checkpoint",
)  # fmt: skip
# Detections per labelled keypoint, so that wrong ones do not crowd out right ones.
MORE_THAN_LABELLED = 1.5
# Share of a GPU's memory for what the network keeps of the images in 32 bits. At their peak, steps on a CPU took 1.1 to
# 1.5 times as much; the rest is for the weights and the computations on them.
MEMORY_OF_IMAGES = 0.5


def prepare_data(
    config: Mapping[str, Any],
    split: dict[str, Any] | None = None,
    trained_channels: Sequence[str] = (),
    trained_images: TrainedImages | None = None,
) -> tuple[KeypointsDataModule, Recipe]:
    """Reads and checks the data, and makes the choices that depend on it.

    Args:
        config: A value for every flag.
        split: The split of an interrupted run, which is used again.
        trained_channels: Names of the channels that the initial weights have learnt.
        trained_images: The images that they were trained on, if known.

    Returns:
        The data module, ready to load data, and the choices.
    """
    datamodule = call(
        KeypointsDataModule, config, augmentation=None, heatmap_sigma=None,
        heatmap_stride=None, image_size=None, train_crop_size=None, batch_size=None,
        split=split,
    )  # fmt: skip
    datamodule.trained_images = trained_images
    datamodule.setup()
    recipe = call(
        choose_recipe,
        config,
        annotations=datamodule.train_annotations,
        sizes=datamodule.train_sizes,
        device=_device(config, list(datamodule.channel_names)),
        trained_channels=trained_channels,
        by_heart=datamodule.parts.validates_all_training,
    )
    distances = parse_distances(config["maximal_gt_keypoint_pixel_distances"], config["threshold_unit"])
    measured = datamodule.parts.sizes["validation"]
    warn_of_fine_distances(distances, config["threshold_unit"], measured, recipe.image_size)
    warn_of_large_parts(recipe.train_crop_size, datamodule.train_sizes, recipe.image_size)
    augmentation = call(Augmentation, {**config, **recipe.values()})
    datamodule.augmentation = augmentation if recipe.augment_train and recipe.augmented_share > 0 else None
    datamodule.heatmap_sigma, datamodule.heatmap_stride = recipe.heatmap_sigma, recipe.heatmap_stride
    datamodule.image_size, datamodule.train_crop_size = recipe.image_size, recipe.train_crop_size
    datamodule.batch_size = recipe.batch_size
    return datamodule, recipe


def _device(config: Mapping[str, Any], channels: list[str]) -> Device:
    """The device that Lightning will train on. If there are several GPUs, it may use any of them."""
    present = torch.cuda.is_available() or torch.backends.mps.is_available()
    if not present or config["accelerator"] == "cpu":
        return Device("cpu")
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if not gpus:
        return Device("gpu")
    return Device("gpu", all(map(is_ampere, gpus)), partial(_fitting, config, channels, gpus))


def _fitting(
    config: Mapping[str, Any], channels: list[str], gpus: Sequence[torch.device], stride: int, height: int, width: int
) -> float:
    """How many images fit into the smallest GPU, from its total memory alone, so that all processes agree."""
    with torch.random.fork_rng(devices=[]):  # so that the initial weights stay the same
        detector = _untrained(config, channels, stride)
    memory = min(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus)
    try:
        return MEMORY_OF_IMAGES * memory / kept_bytes(detector, (detector.backbone.n_channels_in, height, width))
    except Exception as error:  # noqa: BLE001  a custom backbone may need real values, and can still be trained
        logger.info("cannot tell how much memory an image takes: %s", first_line(error))
        return math.inf


def _untrained(config: Mapping[str, Any], channels: list[str], stride: int) -> KeypointDetector:
    """The detector with this stride, with placeholders for what is not decided yet."""
    undecided = {"image_size": None, "keypoint_channel_max_keypoints": None, "heatmap_stride": stride}
    undecided |= {name: 1.0 for name in ("heatmap_sigma", "learning_rate") if config[name] == "auto"}
    return build_detector({**config, **undecided}, channels, load_pretrained=False)


def decoding_caps(datamodule: KeypointsDataModule, max_keypoints: int | None) -> dict[str, Any]:
    """How many keypoints are decoded per channel.

    Logs the number if it is not the usual one, and suggests `keypoint_channel_max_keypoints` if it might help.

    Args:
        datamodule: The data, set up.
        max_keypoints: The requested number, or None for one that suits the data.

    Returns:
        `max_keypoints` and `keypoint_channel_max_keypoints`.
    """
    of_channels = datamodule.keypoint_channel_max_keypoints
    fullest = np.max([part.counts().max(axis=0) for part in datamodule.parts.annotations.values()], axis=0)
    single = [name for name, count in zip(datamodule.channel_names, fullest, strict=True) if count == 1]
    if single and of_channels is None:
        of_all = len(single) == len(fullest)
        logger.info(
            "no image holds more than one keypoint of %s: --keypoint_channel_max_keypoints %s would detect at most one",
            "any channel" if of_all else ", ".join(single),
            "1" if of_all else f'"{" ".join("1" if count == 1 else "-1" for count in fullest)}"',
        )
    if max_keypoints is None:
        capped = np.array(of_channels or [-1] * len(fullest)) != -1
        most = int(np.where(capped, 0, fullest).max())
        max_keypoints = max(MAX_KEYPOINTS, math.ceil(MORE_THAN_LABELLED * most))
        if max_keypoints > MAX_KEYPOINTS:
            logger.info("--max_keypoints %d (an image holds %d of a channel)", max_keypoints, most)
    return {"max_keypoints": max_keypoints, "keypoint_channel_max_keypoints": of_channels}


def check_values(config: Mapping[str, Any]) -> None:
    """Checks the values of flags that can be checked without data, since reading data may take long.

    Args:
        config: A value for every flag; `auto` is accepted. `check_detector` checks the flags of the detector.

    Raises:
        InputError: If a value is not usable.
    """
    for name in PATHS:
        if config[name] is not None:
            check_given(str(config[name]), f"--{name}", "a path")
    given = {**config, **{name: 1 for name in flags.automatic_flags() if config[name] == "auto"}}
    if given["batch_size"] < 1:
        raise InputError(f"--batch_size {given['batch_size']}: expected at least 1, or auto")
    for name in ("image_size", "train_crop_size"):
        parse_image_size(None if given[name] == "none" else given[name], name)
    check_ratio(given["validation_split_ratio"])
    check_num_workers(given["num_workers"])
    call(Augmentation, given)
    build_callbacks(given, RunFolder(Path()), ["channel"])


def check_detector(config: Mapping[str, Any]) -> None:
    """Checks the flags of the detector without data, since reading data may take long.

    Args:
        config: A value for every flag; `auto` is accepted. If the stride is `auto`, at least one stride has to suit
            the backbone.

    Raises:
        InputError: If a name or a value is not usable.
    """
    strides = STRIDES if config["heatmap_stride"] == "auto" else (config["heatmap_stride"],)
    for stride in strides:
        try:
            detector = _untrained(config, ["channel"], stride)
            break
        except InputError:
            if stride == strides[-1]:
                raise
    nothing = torch.zeros(1, 1, 16, 16)  # enough for a loss to reject bad arguments
    targets = LossTargets(nothing, nothing > 0, nothing == 0)
    evaluate_loss(detector.hparams.loss, detector.hparams.loss_arguments, nothing, targets)
    _warn_of_random_encoder(config, detector.backbone)
    if not config["ema_decay"] and config["learning_rate_schedule"] == "cosine_to_half":
        logger.warning("--ema_decay 0: without averaged weights, --learning_rate_schedule cosine gives better results")


def _warn_of_random_encoder(config: Mapping[str, Any], backbone: Backbone) -> None:
    """Warns if an encoder has random weights and is not trained."""
    encoder, untrained = (
        {parameter for module in modules for parameter in module.parameters()}
        for modules in (backbone.encoder_modules(), backbone.untrained_modules())
    )
    if config["checkpoint"] or not encoder <= untrained:
        return
    text = "--%s %s: an encoder with neither pretrained weights nor --checkpoint keeps its random weights%s"
    if epochs := config["freeze_encoder_epochs"]:
        while_frozen = "" if epochs < 0 else f" for {counted(epochs, 'epoch')}"
        logger.warning(text, "freeze_encoder_epochs", epochs, while_frozen)
    if config["encoder_learning_rate_factor"] == 0:
        logger.warning(text, "encoder_learning_rate_factor", config["encoder_learning_rate_factor"], "")


def build_detector(config: Mapping[str, Any], channels: list[str], load_pretrained: bool = True) -> KeypointDetector:
    """Makes the detector that the flags describe.

    Args:
        config: A value for every flag, with `auto` replaced.
        channels: Names of the channels.
        load_pretrained: False skips the backbone's pretrained weights, because a checkpoint replaces them.

    Returns:
        The untrained detector.
    """
    backbone = flags.registry_arguments(BACKBONES, "backbone_type", config)
    loss_arguments = flags.registry_arguments(LOSSES, "loss", config)
    return call(
        KeypointDetector,
        config,
        keypoint_channels=channels,
        backbone=backbone,
        loss_arguments=loss_arguments,
        load_pretrained=load_pretrained,
    )


def build_callbacks(
    config: Mapping[str, Any], folder: RunFolder, channels: list[str], is_trained: bool = False
) -> list[pl.Callback]:
    """Makes the callbacks of a training run.

    Args:
        config: A value for every flag.
        folder: Folder of the run.
        channels: Names of the channels.
        is_trained: Whether the detector already knows all channels.

    Returns:
        The callbacks, in the order in which they have to run.
    """
    row = EvaluationRow()
    metrics = call(MetricsLogger, config, row=row, channel_names=channels)
    return [
        *([StartEvaluation(row)] if is_trained else []),
        call(Curriculum, config),
        ResumeState(),
        EvaluationSchedule(automatic=config["ap_epoch_freq"] == "auto" and config["val_check_interval"] is None),
        # Before everything that saves or validates, which has to see the averaged weights.
        *([call(ExponentialMovingAverage, config)] if config["ema_decay"] else []),
        StopAtBadLoss(folder.path),
        LossLogger(row, channels),
        metrics,
        row,
        call(HeatmapPictures, config, metrics=metrics, folder=folder.pictures, channel_names=channels),
        AugmentationPicture(folder.path / "augmentations.jpg", channels),
        call(RelativeEarlyStopping, config),
        CollapseWarning(),
        call(DeviceSpeed, config),
        TimeShares(),
        BusyCores(),
        *call(create_checkpoint_callbacks, config, folder=folder.checkpoints),
    ]
