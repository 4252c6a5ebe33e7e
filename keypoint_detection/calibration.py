"""Score thresholds with a promise: a recall that also holds on new, unlabelled images.

The method is conformal risk control (Angelopoulos et al. 2022). The exchangeable unit is the image, not the keypoint:
keypoints of one image share its light, pose and blur, and tend to be found or missed together. The loss of an image is
the share of its true keypoints that are missed; it never falls as the threshold rises. The method chooses the largest
threshold with

    (sum of the losses over n images + 1) / (n + 1) <= 1 - recall

Then the detector finds at least the share `recall` of the keypoints in a new image that has the channel and comes from
the same source as the labelled ones, on average over new images and over the choice of labelled ones. The promise does
not hold if the labelled images were trained on, or are neighbouring frames of one video.

D detections, n images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keypoint_detection.metrics import Matches
from keypoint_detection.wording import cells, counted, padded

METHOD = "conformal risk control over images"


@dataclass(frozen=True)
class ChannelCalibration:
    """What can be promised for one channel.

    Attributes:
        threshold: The score threshold that keeps the promise, or None if there is none.
        images: Number n of labelled images that have keypoints of the channel.
        keypoints: Number of true keypoints in these images.
        measured_recall: Share of the keypoints of an image that are found at the threshold (without a threshold: by
            any detection), averaged over these images. NaN if there are none.
        problem: Why there is no threshold, or None.
    """

    threshold: float | None
    images: int
    keypoints: int
    measured_recall: float
    problem: str | None = None


def conformal_threshold(scores: np.ndarray, images: np.ndarray, num_truths: np.ndarray, recall: float) -> float | None:
    """The largest score threshold whose recall on a new image is at least `recall` in expectation.

    Args:
        scores: `(D,)` scores of the detections that found a true keypoint.
        images: `(D,)` int, the image of each detection, in [0, n).
        num_truths: `(n,)` number of true keypoints of each image, at least 1.
        recall: The recall to promise, in (0, 1).

    Returns:
        The threshold (a detection counts if its score is at least that), or None if no threshold keeps the promise.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    found = np.cumsum(1 / num_truths[images[order]])
    last_of_score = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    bound = (len(num_truths) - found[last_of_score] + 1) / (len(num_truths) + 1)
    kept = np.flatnonzero(bound <= 1 - recall + 1e-12)  # the sums are rounded
    return float(ordered[last_of_score[kept[0]]]) if len(kept) else None


def images_needed(recall: float) -> int:
    """The smallest number of images for which a promise is possible, even if every keypoint is found."""
    return math.ceil(1 / (1 - recall) - 1 - 1e-9)


def calibrate_channel(
    matches: Matches, channel: int, position: int, num_truths: Mapping[int, int], recall: float
) -> ChannelCalibration:
    """Looks for a threshold for one channel.

    Args:
        matches: All detections in the labelled set.
        channel: Index of the channel.
        position: Index of the threshold distance within which a detection must be.
        num_truths: The number of true keypoints in each image that has the channel, by image index.
        recall: The recall to promise, in (0, 1).

    Returns:
        The threshold, or why there is none.
    """
    own = (matches.channels == channel) & ~matches.distances[:, position].isnan()
    scores = matches.scores[own].numpy()
    places = {index: place for place, index in enumerate(num_truths)}
    images = np.array([places[index] for index in matches.images[own].tolist()], dtype=np.int64)
    counts = np.array(list(num_truths.values()), dtype=np.int64)
    threshold = conformal_threshold(scores, images, counts, recall)
    shown = scores >= (-math.inf if threshold is None else threshold)
    measured = float((1 / counts[images[shown]]).sum() / len(counts)) if len(counts) else math.nan
    problem = None
    if len(counts) < images_needed(recall):
        found = f"{counted(len(counts), 'image')} with this channel"
        problem = f"too little data: {found}, at least {images_needed(recall)} needed"
    elif threshold is None:
        problem = f"out of reach: even all detections find only {measured:.3f} on average over {len(counts)} images"
    return ChannelCalibration(threshold, len(counts), int(counts.sum()), measured, problem)


@dataclass(frozen=True)
class Calibration:
    """Thresholds with a promise for all channels, as they are stored in a checkpoint.

    Attributes:
        recall: The recall that was asked for.
        distance: Distance in pixels within which a detection counts as finding a keypoint.
        data: The labelled file and the fingerprint of its labels.
        channels: The result for each channel, by name.
    """

    recall: float
    distance: float
    data: dict[str, str]
    channels: dict[str, ChannelCalibration]

    @property
    def promises(self) -> bool:
        """Whether there is a threshold with a promise for any channel."""
        return any(found.threshold is not None for found in self.channels.values())

    def record(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a JSON file."""
        return {"method": METHOD, **asdict(self)}

    def table(self) -> str:
        """One line per channel, as text."""
        width = max(map(cells, self.channels))
        lines = [f"Thresholds that promise a recall of {self.recall:g} within {self.distance:g} px"]
        for name, found in self.channels.items():
            if found.problem is None:
                images = counted(found.images, "image")
                text = f"{found.threshold:.4f}   ({found.measured_recall:.3f} on average over {images})"
            else:
                text = f"no promise, threshold unchanged   ({found.problem})"
            lines.append(f"{padded(name, width)}  {text}")
        return "\n".join(lines)
