"""What an evaluation takes from its flags, and where these are silent from the training that wrote the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.channels import ChannelGroup, split_word
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.images import scan_sizes
from keypoint_detection.data.splits import read_split, recorded_split, warn_of_changed_labels
from keypoint_detection.data.validation import leave_out_outside
from keypoint_detection.errors import InputError
from keypoint_detection.metrics.distances import DEFAULT_DISTANCES, parse_distances, warn_of_tiny
from keypoint_detection.predict import Network


def chosen_distances(
    trained: Mapping[str, Any], given: str | float | list[float] | None, unit: str | None
) -> tuple[list[float], str]:
    """Threshold distances and their unit: those that are given, or of the training.

    Args:
        trained: How the training evaluated, as a `Network` knows it; empty where it does not.
        given: Distances, or None.
        unit: `pixel`, `image` or None.

    Raises:
        InputError: If they are no distances of that unit.
    """
    if given is None and trained and unit in (None, trained["threshold_unit"]):
        return list(trained["distances"]), trained["threshold_unit"]
    unit = unit or "pixel"
    if given is None and unit == "image":
        raise InputError("--threshold_unit image: expected --maximal_gt_keypoint_pixel_distances in fractions as well")
    distances = parse_distances(DEFAULT_DISTANCES if given is None else given, unit)
    warn_of_tiny(distances, unit)
    return distances, unit


def chosen_channels(network: Network, given: str | list[str] | None) -> dict[str, str | ChannelGroup]:
    """Which channels are evaluated, and what of a file they are made of: what is given, or as in the training.

    Args:
        network: A checkpoint, or an exported file.
        given: Some of its channels, which may say what they are made of, as `a=b`. None takes all.

    Returns:
        For each of them by its name what `read_annotations` is asked for.

    Raises:
        InputError: If nothing is asked for, or the checkpoint has no such channel.
    """
    names, members = network.channel_names, network.evaluation.get("channel_members", {})
    words = given.split() if isinstance(given, str) else names if given is None else given
    if not words:
        raise InputError(f"--keypoint_channels: is empty, expected some of: {', '.join(names)}")
    asked_for = {parts[0]: (word, parts) for word in words for parts in [split_word(word, names)]}
    unknown = sorted(set(asked_for) - set(names))
    if unknown:
        raise InputError(f"--keypoint_channels: the checkpoint has no {unknown[0]!r}, but {', '.join(names)}")
    if len(asked_for) < len(words):
        raise InputError(f"--keypoint_channels {' '.join(words)}: expected each channel once")
    taken = {part: word for word, parts in asked_for.values() if len(parts) > 1 for part in parts}
    chosen: dict[str, str | ChannelGroup] = {}
    for name, (word, parts) in asked_for.items():
        left = tuple(member for member in members.get(name, [name]) if member not in taken)
        if len(parts) == 1 and not left:
            raise InputError(f"--keypoint_channels {taken[name]}: leaves nothing for {name!r} of the checkpoint")
        chosen[name] = word if len(parts) > 1 else ChannelGroup(name, left)
    return chosen


def fingerprint_as_trained(
    network: Network,
    annotations: Annotations,
    sizes: np.ndarray,
    chosen: Mapping[str, str | ChannelGroup],
    keypoint_coordinates: str,
) -> str | None:
    """The fingerprint that a labelled file has in a training, whichever of its channels are evaluated.

    Args:
        network: A checkpoint, or an exported file.
        annotations: The labels that are evaluated, of the whole file.
        sizes: `(N, 2)` width and height of its images.
        chosen: What the evaluated channels are made of, see `chosen_channels`.
        keypoint_coordinates: Convention of a native file.

    Returns:
        The fingerprint, or None if the file has not all channels of the checkpoint.
    """
    trained = chosen_channels(network, None)
    if list(chosen.items()) == list(trained.items()):
        return annotations.fingerprint()
    try:
        whole = read_annotations(
            annotations.source, annotations.image_root, keypoint_channels=list(trained.values()),
            keypoint_coordinates=keypoint_coordinates, report=False,
        )  # fmt: skip
        return leave_out_outside(whole, sizes, report=False).fingerprint()
    except InputError:
        return None


def read_labels(
    json_path: Path,
    folder: Path,
    channels: Sequence[str | ChannelGroup],
    keypoint_coordinates: str,
) -> tuple[Annotations, np.ndarray]:
    """Reads and checks a labelled file.

    Args:
        json_path: The file.
        folder: Folder of its images.
        channels: Which of its channels are read, and which of them are merged.
        keypoint_coordinates: Convention of a native file.

    Returns:
        The labels, and `(N, 2)` int width and height of the images, 0 where the header was not read.

    Raises:
        InputError: In one line, for whatever is wrong with the data.
    """
    annotations = read_annotations(
        json_path, folder, keypoint_channels=channels, keypoint_coordinates=keypoint_coordinates
    )
    sizes = scan_sizes(annotations, limit=None)
    return leave_out_outside(annotations, sizes), sizes


def held_out(annotations: Annotations, split: str | Path, fingerprint: str | None) -> np.ndarray:
    """Finds the images that a training held out to validate on.

    Args:
        annotations: The labels of the whole file.
        split: The split.json of the training.
        fingerprint: What `fingerprint_as_trained` gives for the file; None warns of no change.

    Returns:
        Their positions.

    Raises:
        InputError: If the file is no record of a split, or one of other images.
    """
    record = read_split(split)
    validation = recorded_split(annotations, record, f"--split {split}")[1]
    if fingerprint is not None:
        warn_of_changed_labels(annotations.source, record, fingerprint)
    return validation
