"""Starting from the weights of another training run, which may have had other channels and other data."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import wandb

from keypoint_detection.data.channels import channel_members
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones import BACKBONES
from keypoint_detection.models.checkpoint_file import EVALUATION_KEY, TRAINED_IMAGES, load_checkpoint
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.hyperparameters import plain
from keypoint_detection.models.registry import check_registered
from keypoint_detection.train.wandb_connection import login_trouble
from keypoint_detection.wording import first_line

logger = logging.getLogger(__name__)

ARTIFACT = re.compile(r"(?:[\w. -]+/){0,2}[\w.-]+:[\w.-]+")
NAMES_SHOWN = 4


@dataclass(frozen=True)
class TrainedWeights:
    """The weights that a training run starts from.

    Attributes:
        name: The file or artifact that they are from.
        content: Its content.
    """

    name: str
    content: Mapping[str, Any]

    @property
    def images(self) -> TrainedImages:
        """The images that they were trained on, as far as the file says."""
        record = self.content.get(EVALUATION_KEY, {}).get(TRAINED_IMAGES)
        return TrainedImages.from_record(record) or TrainedImages((), "")  # any image may have been trained on

    def renamed(self, keypoint_channels: Sequence[str] | str | None) -> TrainedWeights:
        """The same weights, with their channels called as the flags call them.

        Args:
            keypoint_channels: The flag. `a=b` renames the channel `b` of the weights to `a`, unless they have an `a`,
                or more than one of the channels that are merged.
        """
        values = self.content["hyper_parameters"]
        known = list(values["keypoint_channels"])
        new_names = {}
        for name, members in channel_members(keypoint_channels, known).items():
            sources = [member for member in members if member in known]
            if name not in known and len(sources) == 1:
                new_names[sources[0]] = name
                logger.info("--checkpoint %s: continues its channel %s as %s", self.name, sources[0], name)
        names = [new_names.get(name, name) for name in known]
        return replace(self, content={**self.content, "hyper_parameters": {**values, "keypoint_channels": names}})

    def channels(self, config: Mapping[str, Any]) -> list[str]:
        """Names of the channels that the weights know; none if the flags describe a backbone that they do not fit.

        Args:
            config: A value for every flag, including those that `inherit` takes over.
        """
        values = self.content["hyper_parameters"]
        fits = all(plain(name, config.get(name, value)) == value for name, value in values["backbone"].items())
        return list(values["keypoint_channels"]) if fits else []

    def inherit(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Takes over what the weights need: backbone arguments that are not given, and the stride if it is `auto`.

        Args:
            config: A value for every flag.

        Returns:
            A value for every flag.

        Raises:
            InputError: If the flags name another backbone.
        """
        values = self.content["hyper_parameters"]
        backbone = values["backbone_type"]
        check_registered(BACKBONES, backbone, "backbone", f"--checkpoint {self.name}")
        if config["backbone_type"] != backbone:
            raise InputError(
                f"--checkpoint {self.name} has backbone_type {backbone}, expected {config['backbone_type']}; pass "
                f"--backbone_type {backbone}"
            )
        inherited = {name: value for name, value in values["backbone"].items() if config.get(name, 0) is None}
        if config["heatmap_stride"] == "auto":
            inherited["heatmap_stride"] = values["heatmap_stride"]
        if inherited:
            logger.info("--checkpoint sets %s", ", ".join(f"{name} {value}" for name, value in inherited.items()))
        return {**config, **inherited}

    def load(self, detector: KeypointDetector) -> bool:
        """Loads the weights into a detector, and logs which ones were used.

        Returns:
            Whether they cover all weights of the detector, so that it knows all channels without training.

        Raises:
            InputError: If none of them fits.
        """
        report = detector.load_matching_weights(self.content)
        count = len(set(self.content["state_dict"]) - set(report.unused) - {"score_thresholds"})
        # Only kernels count: the shapes of normalisation weights vary little, and may match by chance.
        kernels = [name for name, value in detector.backbone.named_parameters(prefix="backbone") if value.ndim > 1]
        if all(name in report.missing for name in kernels):
            raise InputError(f"--checkpoint {self.name}: none of its weights fits the backbone that the flags describe")
        logger.info("--checkpoint %s: loaded %d of %d weights", self.name, count, count + len(report.unused))
        for text, names in (
            ("continued channels", report.kept_channels),
            ("new channels", report.new_channels),
            ("unused channels", report.dropped_channels),
            ("new weights", report.missing),
            ("unused weights", report.unused),
        ):
            if names:
                more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
                logger.info("  %s: %s%s", text, ", ".join(names[:NAMES_SHOWN]), more)
        return not report.new_channels and not report.missing


def find_trained_weights(checkpoint: str | None = None) -> TrainedWeights | None:
    """Finds the weights to start from.

    Args:
        checkpoint: Start from these trained weights: a checkpoint, a .safetensors file, or a wandb artifact as
            entity/project/name:alias. Channels that both know are continued, also under a new name that
            --keypoint_channels gives to a channel of the labels (a=b); backbone arguments default to those of the file.

    Returns:
        The weights, or None to start from scratch.

    Raises:
        InputError: If the checkpoint cannot be found or read.
    """
    if checkpoint is None:
        return None
    if not Path(checkpoint).exists() and ARTIFACT.fullmatch(checkpoint):
        return TrainedWeights(checkpoint, _load_artifact(checkpoint))
    return TrainedWeights(checkpoint, load_checkpoint(checkpoint))


def _load_artifact(name: str) -> dict[str, Any]:
    """Downloads a wandb artifact and loads the checkpoint in it."""
    trouble = login_trouble()
    if trouble is not None:
        raise InputError(f"--checkpoint {name}: no such file, and as a wandb artifact it needs a login: {trouble}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            wandb.Api().artifact(name, type="model").download(root=folder)
        except (wandb.Error, OSError, ValueError) as error:
            raise InputError(f"--checkpoint {name}: cannot be downloaded: {first_line(error)}") from error
        found = [path for path in sorted(Path(folder).rglob("*")) if path.suffix in (".ckpt", ".safetensors")]
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise InputError(f"--checkpoint {name}: expected one .ckpt or .safetensors file in it, found {names}")
        return load_checkpoint(found[0])
