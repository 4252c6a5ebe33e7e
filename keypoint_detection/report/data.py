"""The content of a report: images with their true and predicted keypoints, and information about the run.

C channels, N detections, K true keypoints, h w heatmap.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from keypoint_detection.version import library_version
from keypoint_detection.wording import command_line

# How epochs are counted in the names of pictures, in checkpoints, in logs and here. The value of an epoch is drawn at
# the end of that epoch; one that was measured within an epoch is drawn before its end.
EPOCH_AXIS = "epoch (the first is 0; before training: -1)"


@dataclass
class ReportImage:
    """One image with its true and predicted keypoints, in pixels of the image file (after its EXIF rotation).

    Attributes:
        name: The name to show, usually the path as written in the data set.
        width: Width of the image file in pixels.
        height: Height of the image file in pixels.
        truths: For each channel, the true keypoints, `(K, 2)` xy.
        xy: For each channel, the detections, `(N, 2)` xy. Include those with low scores: readers can move the
            threshold.
        scores: For each channel, the scores of the detections, `(N,)` in [0, 1].
        labelled: `(C,)` bool; if False, that channel is ignored in this image.
        path: The image file, read when its picture is needed. None means that there is no picture.
        heatmaps: `(C, h, w)` predicted heatmaps in [0, 1], or None. Only the images in the gallery need them (see
            `worst_images`).
        heatmap_extent: Left, top, right and bottom of the rectangle that the heatmaps cover, in pixels of the image
            file. None means the whole image.
    """

    name: str
    width: int
    height: int
    truths: Sequence[np.ndarray]
    xy: Sequence[np.ndarray]
    scores: Sequence[np.ndarray]
    labelled: np.ndarray
    path: Path | None = None
    heatmaps: np.ndarray | None = None
    heatmap_extent: tuple[float, float, float, float] | None = None


@dataclass
class ReportData:
    """Everything that a report shows.

    Attributes:
        title: Heading of the page.
        channel_names: Names of the channels, in the order of the arrays.
        threshold_distances: Threshold distances of the metrics, in pixels.
        images: The evaluated images.
        score_thresholds: `(C,)` lowest score that counts. None takes the one with the best F1 of each channel at
            `distance` or, if that is undefined, the default for prediction.
        distance: Threshold distance that the page starts with, and at which precision, recall and localisation are
            measured; one of `threshold_distances`. None takes the largest, as in the logged metrics.
        metrics: Values by log name (`meanAP`, `meanAP/d=2`, `AP/<channel>/d=2`) that are shown instead of those
            computed from `images`, if not all images of the set are there.
        test_images: The images of a test set, which gets a table of its own at the same thresholds; no table if empty.
        curves: Training curves by log name (`train/loss`, `validation/AP/<channel>/d=2`, ...): steps and values.
        curves_unit: Unit of the distances in the names of the curves.
        note: A further remark on the numbers, shown below their table.
        run_info: Names and values that are shown at the end; see `run_information`.
        max_images: Maximum number of images in the gallery, which shows the worst ones.
        max_bytes: Approximate maximum size of all pictures in the gallery together.
    """

    title: str
    channel_names: Sequence[str]
    threshold_distances: Sequence[float]
    images: Sequence[ReportImage]
    score_thresholds: Sequence[float] | None = None
    distance: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    test_images: Sequence[ReportImage] = ()
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    curves_unit: str = "px"
    note: str = ""
    run_info: Mapping[str, str] = field(default_factory=dict)
    max_images: int = 200
    max_bytes: int = 10_000_000


def run_information(**entries: str) -> dict[str, str]:
    """Where a report comes from: `entries` first (checkpoint, data set ...), then date, command line and versions."""
    versions = [f"keypoint_detection {library_version()}"]
    versions += [f"{name} {version(name)}" for name in ("torch", "pytorch-lightning")]
    return {
        **entries,
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "command": command_line(),
        "versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
    }
