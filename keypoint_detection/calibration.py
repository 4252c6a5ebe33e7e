"""Score thresholds with a promise: a recall that holds for images that nobody has labelled yet.

The method is conformal risk control (Angelopoulos et al. 2022). What is exchangeable is the image, not the keypoint:
keypoints of one image share its light, pose and blur, and stand or fall together. The loss of an image is the share of
its true keypoints that is missed; it never falls as the threshold rises. Of all thresholds with

    (sum of the losses over n images + 1) / (n + 1) <= 1 - recall

the largest is chosen. Then a new image that holds the channel and comes from where the labelled ones came from has, on
average over new images and over the choice of the labelled ones, at least that share of its keypoints found. Images
that were trained on, or neighbouring frames of one video, do not keep that promise.

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
    """What could be promised for one channel.

    Attributes:
        threshold: The score threshold that keeps the promise; None where there is none.
        images: Number n of labelled images that hold the channel.
        keypoints: Their true keypoints.
        measured_recall: Mean over these images of the share of keypoints found at the threshold; without a threshold,
            of all detections. NaN without an image.
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
        images: `(D,)` int, the image of each, below n.
        num_truths: `(n,)` number of true keypoints of each image, at least 1.
        recall: The recall to promise, in (0, 1).

    Returns:
        The threshold (a detection counts if its score is at least that), None where no threshold keeps the promise.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    found = np.cumsum(1 / num_truths[images[order]])
    last_of_score = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    bound = (len(num_truths) - found[last_of_score] + 1) / (len(num_truths) + 1)
    kept = np.flatnonzero(bound <= 1 - recall + 1e-12)  # the sums are rounded
    return float(ordered[last_of_score[kept[0]]]) if len(kept) else None


def images_needed(recall: float) -> int:
    """The fewest images with which anything at all can be promised, were every keypoint found."""
    return math.ceil(1 / (1 - recall) - 1 - 1e-9)


def calibrate_channel(
    matches: Matches, channel: int, position: int, num_truths: Mapping[int, int], recall: float
) -> ChannelCalibration:
    """Looks for a threshold of one channel.

    Args:
        matches: All detections of the labelled set.
        channel: Which channel.
        position: Which threshold distance a detection has to be within.
        num_truths: The number of true keypoints of each image that holds the channel, by the index of the image.
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
        problem = f"too little data: {counted(len(counts), 'image')} with it, at least {images_needed(recall)} needed"
    elif threshold is None:
        problem = f"out of reach: all detections together find {measured:.3f} in the mean of {len(counts)} images"
    return ChannelCalibration(threshold, len(counts), int(counts.sum()), measured, problem)


@dataclass(frozen=True)
class Calibration:
    """Thresholds with a promise for all channels, as a checkpoint keeps them.

    Attributes:
        recall: What was asked for.
        distance: Pixels within which a detection finds a keypoint.
        data: The labelled file and the fingerprint of its labels.
        channels: By name.
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
                text = f"{found.threshold:.4f}   ({found.measured_recall:.3f} in the mean of {images})"
            else:
                text = f"no promise, the threshold stays   ({found.problem})"
            lines.append(f"{padded(name, width)}  {text}")
        return "\n".join(lines)
