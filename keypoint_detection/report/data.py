"""What a report is made of: images with their true and predicted keypoints, and what is known of the run.

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

from keypoint_detection.models.checkpoint_file import library_version
from keypoint_detection.wording import command_line

# How epochs are counted in pictures' names, checkpoints, logs and here. A value stands where the epoch ends that it is
# of, and one that was measured within an epoch before that.
EPOCH_AXIS = "epoch (the first is 0; before training: -1)"


@dataclass
class ReportImage:
    """One image with what is true and what was predicted, in pixels of the image file (after its EXIF rotation).

    Attributes:
        name: as it shall be shown, usually the path as written in the data set.
        width: of the image file in pixels.
        height: of the image file in pixels.
        truths: per channel the true keypoints, `(K, 2)` xy.
        xy: per channel the detections, `(N, 2)` xy. Keep low scores too: the reader moves the threshold.
        scores: per channel the scores of the detections, `(N,)` in [0, 1].
        labelled: `(C,)` bool; where False, nothing of that channel counts in this image.
        path: where the picture is read from when it is needed; None: there is no picture.
        heatmaps: `(C, h, w)` predicted heatmaps in [0, 1], or None. Only the gallery's images need them
            (see `worst_images`).
        heatmap_extent: left, top, right and bottom of the rectangle that the heatmaps cover, in pixels of the image
            file. None: the whole image.
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
    """All that a report shows.

    Attributes:
        title: heading of the page.
        channel_names: in the order of the arrays.
        threshold_distances: in pixels, those of the metric.
        images: the evaluated images.
        score_thresholds: `(C,)` lowest score that counts. None: the best F1 of each channel at `distance`,
            and where that is undefined, what a detector is used with.
        distance: threshold distance that the page starts with, and at which precision, recall and localisation are
            measured; one of `threshold_distances`. None: the largest, as in the logged metrics.
        metrics: values by log name (`meanAP`, `meanAP/d=2`, `AP/<channel>/d=2`) that are shown in place of what these
            images give, for a set of which not all images are here.
        test_images: those of a test set, for a table of their own at the same thresholds; none if empty.
        curves: training curves by log name (`train/loss`, `validation/AP/<channel>/d=2`, ...): steps and values.
        curves_unit: what the distances in their names count.
        note: what else there is to say of the numbers, below their table.
        run_info: name -> value, shown at the end; see `run_information`.
        max_images: most images in the gallery, the worst ones.
        max_bytes: what the pictures of the gallery may take in all, about.
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
