"""The parts of a data set: the images for training, validation and test."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.channels import of_all_channels
from keypoint_detection.data.copies import MOST_BYTES, find_copies_of_training_images
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.images import complete_sizes, scan_sizes
from keypoint_detection.data.splits import (
    FEWEST_TO_MEASURE,
    check_same_images,
    describe_split,
    random_split,
    recorded_split,
    warn_of_changed_labels,
)
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.data.validation import leave_out_outside
from keypoint_detection.errors import InputError
from keypoint_detection.wording import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The parts of a data set, by name: `train`, `validation` and, if there is one, `test`.

    Attributes:
        annotations: the labels of each part.
        sizes: for each part `(N, 2)` int64 width and height of its images in pixels; 0 where the header was not read.
        split: the record of which image is in which part.
    """

    annotations: dict[str, Annotations]
    sizes: dict[str, np.ndarray]
    split: dict[str, Any]

    @property
    def validates_all_training(self) -> bool:
        """Whether all training images are also validation images."""
        train, validation = self.annotations["train"], self.annotations["validation"]
        return len(train) <= len(validation) and _paths(train) <= _paths(validation)


def read_parts(
    files: Mapping[str, tuple[Path, Path]],
    *,
    keypoint_channels: str | Sequence[str] | None,
    max_keypoints: Sequence[int] | None,
    keypoint_coordinates: str,
    validation_split_ratio: float,
    seed: int,
    split: Mapping[str, Any] | None,
    trained_images: TrainedImages | None,
) -> Parts:
    """Reads and checks the files of a data set, and splits the training file if there is none for validation.

    Args:
        files: JSON file and image folder of `train` and, if there are any, of `validation` and `test`.
        keypoint_channels: the channels to read; None takes all of the training file.
        max_keypoints: the maximum number of keypoints per image of each channel, or one for all; -1 or None: any.
        keypoint_coordinates: the convention of native files.
        validation_split_ratio: share of the training file for validation.
        seed: seed of the split.
        split: record of a split to use again; None makes a new one.
        trained_images: those of the weights that the training starts from, if they are known.

    Raises:
        InputError: in one line, for anything that is wrong with the data.
    """
    whole: dict[str, Annotations] = {}
    sizes: dict[str, np.ndarray] = {}
    for name, (json_path, image_root) in files.items():
        # Every file has to have the channels of the training file, and may have others.
        wanted = list(whole["train"].channel_names) if keypoint_channels is None and whole else keypoint_channels
        whole[name] = read_annotations(
            json_path, image_root, keypoint_channels=wanted, keypoint_coordinates=keypoint_coordinates
        )
        _check_same_channels(whole["train"], whole[name])
        maxima = None if max_keypoints is None else _maxima(max_keypoints, whole[name].channel_names)
        of_part = "" if name == "train" else f"_{name}"
        sizes[name] = scan_sizes(whole[name], folder_flag=f"--image{of_part}_dataset_path")
        whole[name] = leave_out_outside(whole[name], sizes[name])
        if maxima is not None:
            whole[name] = _check_maxima(whole[name], sizes[name], maxima)
    parts = dict(whole)
    if "validation" not in whole:
        if split is None:
            trained = trained_images and trained_images.recognise(whole["train"], MOST_BYTES)
            chosen = random_split(whole["train"], validation_split_ratio, seed, trained)
        else:
            chosen = recorded_split(whole["train"], split)
            warn_of_changed_labels(whole["train"].source, split, whole["train"].fingerprint())
        all_sizes = sizes["train"]
        for name, indices in zip(("train", "validation"), chosen, strict=True):
            parts[name], sizes[name] = whole["train"].subset(indices), all_sizes[indices]
        logger.info(
            "%s: %s to train on, %s to validate on",
            whole["train"].source, counted(len(parts["train"]), "image"), len(parts["validation"]),
        )  # fmt: skip
    if split is not None:
        for name, annotations in parts.items():
            check_same_images(annotations, split, name)
    for name in [name for name in parts if name != "train"]:
        if not sizes[name].all():  # each batch has images of one size, and keypoints outside do not count
            sizes[name] = complete_sizes(parts[name], sizes[name], skip_unreadable=True)
            parts[name] = leave_out_outside(parts[name], sizes[name])
    is_split_off = "validation" not in whole
    _check_what_is_learned(parts, is_split_off)
    _check_what_validates(parts, is_split_off)
    _warn_of_what_is_measured_on(parts, trained_images)
    return Parts(parts, sizes, describe_split(seed, whole, parts))


def _check_same_channels(train: Annotations, other: Annotations) -> None:
    """Refuses a file whose channels consist of others than in the training file, e.g. if it has no `a` of `a=b`."""
    for group, expected in zip(other.groups, train.groups, strict=True):
        if group != expected:
            members, of_train = (" and ".join(f'"{name}"' for name in of.members) for of in (group, expected))
            raise InputError(
                f'{other.source}: channel "{group.name}" consists of {members} in that file, but of {of_train} in '
                f"{train.source}, expected the same"
            )


def _maxima(max_keypoints: Sequence[int], names: Sequence[str]) -> np.ndarray:
    """The maximum number of keypoints for each channel, `(C,)` int64; raises an error if a number is invalid."""
    max_keypoints = of_all_channels(max_keypoints, len(names))
    if len(max_keypoints) != len(names):
        raise InputError(
            f"keypoint_channel_max_keypoints has {counted(len(max_keypoints), 'number')}, expected one for all, or "
            f"{len(names)}, one for each of: {', '.join(names)}"
        )
    for name, maximum in zip(names, max_keypoints, strict=True):
        if maximum < 1 and maximum != -1:
            raise InputError(
                f'keypoint_channel_max_keypoints is {maximum} for channel "{name}", expected -1 (any) or at least 1'
            )
    return np.array([np.iinfo(np.int64).max if maximum == -1 else maximum for maximum in max_keypoints])


def _check_maxima(annotations: Annotations, sizes: np.ndarray, maxima: np.ndarray) -> Annotations:
    """Refuses images with too many keypoints of a channel, and returns the annotations.

    If the size of such an image is unknown, its header is read first, its size is filled in in `sizes`, and its
    keypoints outside are left out. Keypoints outside only count if the header cannot be read.
    """
    full = np.flatnonzero((annotations.counts() > maxima).any(axis=1))
    unknown = full[(sizes[full] == 0).any(axis=1)]
    if len(unknown):
        sizes[unknown] = complete_sizes(annotations.subset(unknown), sizes[unknown], skip_unreadable=True)
        annotations = leave_out_outside(annotations, sizes)
    counts = annotations.counts()
    images, channels = np.nonzero(counts > maxima)
    if len(images):
        image, channel = int(images[0]), int(channels[0])
        raise InputError(
            f'{annotations.describe(image)}, channel "{annotations.channel_names[channel]}": {counts[image, channel]} '
            f"keypoints, expected at most {maxima[channel]} (keypoint_channel_max_keypoints)"
        )
    return annotations


def _check_what_is_learned(parts: Mapping[str, Annotations], is_split_off: bool) -> None:
    """Warns of channels without a keypoint to train on; raises an error if nothing is left to train on."""
    train = parts["train"]
    if not len(train.xy):
        advice = "; another --seed gives another split" if is_split_off and len(parts["validation"].xy) else ""
        raise InputError(
            f"{train.source}: no training image has any keypoint, expected at least one to learn from{advice}"
        )
    if without := _channels_without_keypoints(train):
        logger.warning(
            "%s: no training image has a keypoint of %s, which therefore cannot be learned",
            train.source, ", ".join(without),
        )  # fmt: skip


def _check_what_validates(parts: Mapping[str, Annotations], is_split_off: bool) -> None:
    """Warns of channels that are learned but have no keypoint to validate on."""
    validation, unlearned = parts["validation"], _channels_without_keypoints(parts["train"])
    without = [name for name in _channels_without_keypoints(validation) if name not in unlearned]
    if not len(validation.xy):
        logger.warning(
            "%s: no validation image has any keypoint, so the best checkpoint cannot be chosen", validation.source
        )
    elif without:
        logger.warning(
            "%s: no validation image has a keypoint of %s, so accuracy there is unknown and the score threshold is a "
            "guess%s",
            validation.source, ", ".join(without), "; another --seed gives another split" if is_split_off else "",
        )  # fmt: skip


def _channels_without_keypoints(annotations: Annotations) -> list[str]:
    counts = annotations.counts().sum(axis=0)
    return [name for name, count in zip(annotations.channel_names, counts, strict=True) if not count]


def _warn_of_what_is_measured_on(parts: Mapping[str, Annotations], trained_images: TrainedImages | None) -> None:
    """Warns if another part has images of this or an earlier training, or copies, or if validation images are few."""
    paths = {name: _paths(part) for name, part in parts.items()}
    for name in [name for name in paths if name != "train"]:
        if told := trained_images and trained_images.tell(parts[name], MOST_BYTES):
            logger.warning("%s: --checkpoint was trained on %s, so metrics on these are too optimistic", name, told)
        shared = sorted(paths["train"] & paths[name])
        if shared:
            # Two files that use the same image names may be meant for two different folders.
            another = parts[name].source != parts["train"].source
            logger.warning(
                "%s in both train and %s (first: %s), so its metrics say nothing about new images%s",
                counted(len(shared), "image"), name, shared[0],
                f"; --image_{name}_dataset_path names another folder" if another else "",
            )  # fmt: skip
            continue
        if copies := find_copies_of_training_images(parts["train"], parts[name]):
            copy, original = copies[0]
            logger.warning(
                "%s of %s %s in train (first: %s is %s), so its metrics are too optimistic for new images",
                counted(len(copies), "image"), name, "is a copy of one" if len(copies) == 1 else "are copies of some",
                parts[name].path(copy), parts["train"].path(original),
            )  # fmt: skip
        if name == "validation" and len(parts[name]) < FEWEST_TO_MEASURE and len(parts[name].xy):
            logger.warning(
                "%s: %s to validate on, so AP and score thresholds are rough",
                parts[name].source, counted(len(parts[name]), "image"),
            )  # fmt: skip


def _paths(annotations: Annotations) -> set[str]:
    """The normalised paths of all images; only their folder is resolved, since there may be a million images."""
    root = str(annotations.image_root.resolve()).rstrip("/")
    return {os.path.normpath(f"{root}/{name}") for name in annotations.names}
