"""What an evaluation takes from its flags or, if they are not given, from the training run of the checkpoint."""

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
    """Threshold distances and their unit: those that are given, or those of the training run.

    Args:
        trained: How the training run evaluated, as recorded in a `Network`; empty if unknown.
        given: Distances, or None.
        unit: `pixel`, `image` or None.

    Raises:
        InputError: If these are not valid distances in that unit.
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
    """Which channels are evaluated, and which channels of a file they consist of: as given, or as in training.

    Args:
        network: A checkpoint, or an exported file.
        given: Some of its channels; `a=b` says which channels of the file one consists of. None takes all.

    Returns:
        For each of these channels, by name, what to ask of `read_annotations`.

    Raises:
        InputError: If no channel is given, the checkpoint has no such channel, one is given twice, or nothing is left
            for one because another takes all of it.
    """
    names, members = network.channel_names, network.evaluation.get("channel_members", {})
    words = given.split() if isinstance(given, str) else names if given is None else given
    if not words:
        raise InputError(f"--keypoint_channels: is empty, expected some of: {', '.join(names)}")
    asked_for = {parts[0]: (word, parts) for word in words for parts in [split_word(word, names)]}
    unknown = sorted(set(asked_for) - set(names))
    if unknown:
        raise InputError(
            f"--keypoint_channels: the checkpoint has no {unknown[0]!r}, expected some of: {', '.join(names)}"
        )
    if len(asked_for) < len(words):
        raise InputError(f"--keypoint_channels {' '.join(words)}: expected each channel once")
    taken = {part: word for word, parts in asked_for.values() if len(parts) > 1 for part in parts}
    chosen: dict[str, str | ChannelGroup] = {}
    for name, (word, parts) in asked_for.items():
        left = tuple(member for member in members.get(name, [name]) if member not in taken)
        if len(parts) == 1 and not left:
            raise InputError(f"--keypoint_channels {taken[name]}: leaves nothing for the checkpoint's channel {name!r}")
        chosen[name] = word if len(parts) > 1 else ChannelGroup(name, left)
    return chosen


def fingerprint_as_trained(
    network: Network,
    annotations: Annotations,
    sizes: np.ndarray,
    chosen: Mapping[str, str | ChannelGroup],
    keypoint_coordinates: str,
) -> str | None:
    """The fingerprint that a labelled file would have in training, no matter which of its channels are evaluated.

    Args:
        network: A checkpoint, or an exported file.
        annotations: The evaluated labels, of all images in the file.
        sizes: `(N, 2)` width and height of its images.
        chosen: What the evaluated channels consist of, see `chosen_channels`.
        keypoint_coordinates: Convention of a native file.

    Returns:
        The fingerprint, or None if the file lacks some of the checkpoint's channels.
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
        channels: Which of its channels to read, and which of them to merge.
        keypoint_coordinates: Convention of a native file.

    Returns:
        The labels, and `(N, 2)` int width and height of the images, 0 if the header was not read.

    Raises:
        InputError: If anything is wrong with the data; the message is one line.
    """
    annotations = read_annotations(
        json_path, folder, keypoint_channels=channels, keypoint_coordinates=keypoint_coordinates
    )
    sizes = scan_sizes(annotations, limit=None)
    return leave_out_outside(annotations, sizes), sizes


def held_out(annotations: Annotations, split: str | Path, fingerprint: str | None) -> np.ndarray:
    """Finds the images that a training run held out for validation.

    Args:
        annotations: The labels of the whole file.
        split: The split.json of the training run.
        fingerprint: The file's `fingerprint_as_trained`, to warn if the labels have changed; None does not check that.

    Returns:
        The indices of these images.

    Raises:
        InputError: If `split` is not a record of a split, or belongs to other images.
    """
    record = read_split(split)
    validation = recorded_split(annotations, record, f"--split {split}")[1]
    if fingerprint is not None:
        warn_of_changed_labels(annotations.source, record, fingerprint)
    return validation
