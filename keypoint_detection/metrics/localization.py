"""How far detections are from the true keypoints, and how good a detector is at its best score threshold."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from keypoint_detection.log_names import log_name
from keypoint_detection.metrics.average_precision import hits_at_thresholds, mean_of_defined
from keypoint_detection.metrics.base import KeypointMetric


def best_f1(scores: Tensor, true_positives: Tensor, num_truths: int) -> dict[str, float]:
    """Precision, recall and F1 at the score threshold at which F1 is highest.

    Args:
        scores: `(D,)` scores of the detections of the whole set.
        true_positives: `(D,)` bool, which of them are correct.
        num_truths: number of true keypoints in the whole set.

    Returns:
        `recall`, `precision`, `best_f1` and `best_threshold`; detections with at least this score count. If several
        thresholds reach the best F1, the highest one is used. The returned threshold is halfway between the lowest
        score that counts and the next lower score (0 if there is none), because in other images, equally good
        detections have slightly lower scores. Undefined values are NaN: all of them without a true keypoint, precision
        without a detection, and the threshold without a correct detection.
    """
    thresholds, counts, hits = hits_at_thresholds(scores, true_positives)
    if not num_truths:
        return {"recall": math.nan, "precision": math.nan, "best_f1": math.nan, "best_threshold": math.nan}
    if not len(thresholds):
        return {"recall": 0.0, "precision": math.nan, "best_f1": 0.0, "best_threshold": math.nan}
    f1 = 2 * hits / (counts + num_truths)  # computed from integers, so that equal values are exactly equal
    best = int(f1.argmax())
    if not hits[best]:
        return {"recall": 0.0, "precision": 0.0, "best_f1": 0.0, "best_threshold": math.nan}
    lower = float(thresholds[best + 1]) if best + 1 < len(thresholds) else 0.0
    return {
        "recall": float(hits[best] / num_truths),
        "precision": float(hits[best] / counts[best]),
        "best_f1": float(f1[best]),
        "best_threshold": (float(thresholds[best]) + lower) / 2,
    }


class Localization(KeypointMetric):
    """Distances of matched detections in pixels, and recall, precision and F1 at the best score threshold.

    Detections are matched within the largest threshold distance. Logs `median_distance`, `mean_distance`, `recall`,
    `precision`, `best_f1` and `best_threshold`, each also as `<name>/<channel>`. Undefined values are NaN and left out
    of the means over channels.

    Args:
        channel_names: names of the channels, in the order of the tensors.
        threshold_distances: distances in pixels within which a detection may match a true keypoint.
    """

    def compute(self) -> dict[str, float]:
        """Values by log name; distances in pixels, the others in [0, 1]."""
        matches = self.matches()
        largest = self.threshold_distances.index(max(self.threshold_distances))
        per_channel = []
        for channel in range(len(self.channel_names)):
            scores, distances, num_truths = matches.of_channel(channel)
            matched = ~distances[:, largest].isnan()
            near = distances[matched, largest].numpy()
            per_channel.append(
                {
                    "median_distance": float(np.median(near)) if len(near) else math.nan,
                    "mean_distance": float(near.mean()) if len(near) else math.nan,
                    **best_f1(scores, matched, num_truths),
                }
            )
        result = {}
        for key in per_channel[0]:
            result[key] = mean_of_defined([values[key] for values in per_channel])
            named = zip(self.channel_names, per_channel, strict=True)
            result |= {log_name(key, name): values[key] for name, values in named}
        return result
