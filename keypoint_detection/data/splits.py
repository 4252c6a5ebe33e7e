"""Splits the images of a file into training and validation, and records the split for runs that are resumed."""

from __future__ import annotations

import json
import logging
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.errors import InputError
from keypoint_detection.wording import counted

logger = logging.getLogger(__name__)

# Name of the record in a run's folder.
SPLIT_FILE = "split.json"
# With fewer validation images, one or two keypoints decide AP and score thresholds.
FEWEST_TO_MEASURE = 5


def check_ratio(ratio: float) -> None:
    """Checks the share of the images for validation: neither part may be empty.

    Raises:
        InputError: if it is not above 0 and below 1.
    """
    if not 0 < ratio < 1:
        raise InputError(f"validation_split_ratio: expected a number above 0 and below 1, got {ratio}")


def random_split(
    annotations: Annotations, ratio: float, seed: int, trained: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Splits off a random share of the images: at least one is split off, and at least one stays.

    If that would split off images that were trained on before, only others are split off, unless too few of those are
    left.

    Args:
        annotations: the images.
        ratio: share to split off, above 0 and below 1.
        seed: seed of the choice.
        trained: which images were trained on before, and which were not, see `TrainedImages.recognise`. None: none.

    Returns:
        Positions of the images that stay and of those that are split off, both ascending.

    Raises:
        InputError: if the ratio is out of range or there are fewer than two images.
    """
    check_ratio(ratio)
    n = len(annotations)
    if n < 2:
        raise InputError(
            f"{annotations.source}: {n} image cannot be split into training and validation, expected at least 2 "
            "(or a validation file, --json_validation_dataset_path)"
        )
    count = min(max(1, round(n * ratio)), n - 1)
    order = np.random.default_rng((seed, n)).permutation(n)
    validation = order[:count]
    if trained is not None and trained[0][validation].any():
        new, known = order[trained[1][order]], trained[0] | trained[1]
        least = min(count, FEWEST_TO_MEASURE)
        if len(new) >= 2 * least:  # with fewer, validation would need more than half of them
            share = round(ratio * n * len(new) / known.sum())  # of all that are new, also of those not known to be
            validation = new[: min(count, max(least, share))]
            logger.info("%s: validating on images that --checkpoint was not trained on", annotations.source)
    chosen = np.isin(np.arange(n), validation)
    return np.nonzero(~chosen)[0], np.nonzero(chosen)[0]


def recorded_split(
    annotations: Annotations, split: Mapping[str, Any], origin: str = "split"
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the images of a recorded split.

    Args:
        annotations: the images.
        split: as returned by `describe_split`.
        origin: where the split is from; messages begin with it.

    Returns:
        Positions of the images for training and for validation, in their recorded order.

    Raises:
        InputError: if the record is not a split, or its images are not those of the file.
    """
    positions = {name: index for index, name in enumerate(annotations.names)}
    parts = [_positions(annotations, positions, split, part, origin) for part in ("train", "validation")]
    listed = np.concatenate(parts)
    if len(np.unique(listed)) != len(listed):
        raise InputError(f"{origin}: lists an image twice, expected each image in one part only")
    if len(listed) != len(annotations):
        missing = np.setdiff1d(np.arange(len(annotations)), listed)
        raise InputError(
            f"{origin}: does not list {annotations.name(int(missing[0]))} of {annotations.source} "
            f"({counted(len(missing), 'image')} missing), expected the file that the split was made from"
        )
    return parts[0], parts[1]


def warn_of_changed_labels(source: Path, split: Mapping[str, Any], fingerprint: str) -> None:
    """Warns if a split was made from other labels.

    Args:
        source: the file of the labels.
        split: as returned by `describe_split`; one without fingerprints causes no warning.
        fingerprint: fingerprint of the whole file, with the channels of the training run.
    """
    if recorded_fingerprints(split).get("train", fingerprint) != fingerprint:
        logger.warning("%s: the labels have changed since the split was made.", source)


def recorded_fingerprints(record: Any) -> dict[str, str]:
    """The fingerprints of the files that a split was made from, by purpose; none if the record has none."""
    found = record.get("fingerprints") if isinstance(record, Mapping) else None
    return found if isinstance(found, dict) else {}


def read_split(path: str | Path) -> dict[str, Any]:
    """Reads the record of a split that a training run wrote.

    Raises:
        InputError: if the file is not such a record.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--split {path}: expected the {SPLIT_FILE} of a training run: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"--split {path}: expected the {SPLIT_FILE} of a training run")
    return record


def describe_split(seed: int, files: Mapping[str, Annotations], parts: Mapping[str, Annotations]) -> dict[str, Any]:
    """The record of a split, for `SPLIT_FILE`.

    Args:
        seed: the seed that the split was made with.
        files: the annotations of whole files, by purpose.
        parts: the annotations of each part: `train`, `validation` and, if there is one, `test`.

    Returns:
        The seed, the fingerprints of the files, and for each part the names of its images.
    """
    record: dict[str, Any] = {"seed": seed}
    record["fingerprints"] = {name: annotations.fingerprint() for name, annotations in files.items()}
    return record | {name: list(annotations.names) for name, annotations in parts.items()}


def check_same_images(annotations: Annotations, split: Mapping[str, Any], part: str) -> None:
    """Checks that a part has the images that the split records for it.

    Raises:
        InputError: if it does not.
    """
    if part in split and list(split[part]) != list(annotations.names):
        raise InputError(f"split: the images of {part!r} are not those of {annotations.source}, expected the same")


def _positions(
    annotations: Annotations, positions: Mapping[str, int], split: Mapping[str, Any], part: str, origin: str
) -> np.ndarray:
    names = split.get(part)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{origin}: expected a list of image names under {part!r}, got {reprlib.repr(names)}")
    for name in names:
        if name not in positions:
            raise InputError(
                f"{origin}: {part!r} lists {name!r}, which is not in {annotations.source}, expected the file that the "
                "split was made from"
            )
    return np.array([positions[name] for name in names])
