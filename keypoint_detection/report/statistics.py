"""The numbers of a report: table, curves, calibration, histogram and errors by kind, as plain values for JSON.

I images, C channels, N detections, K true keypoints, T threshold distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from keypoint_detection.metrics.average_precision import (
    AveragePrecision,
    average_precision,
    mean_of_defined,
    precision_recall_curve,
)
from keypoint_detection.metrics.base import Matches
from keypoint_detection.metrics.error_kinds import ERROR_KINDS, error_taxonomy
from keypoint_detection.metrics.localization import best_f1
from keypoint_detection.score_thresholds import FALLBACK_THRESHOLD

CALIBRATION_BINS = 10
HISTOGRAM_BINS = 20
CURVE_POINTS = 200  # approximate maximum number of points of a precision-recall curve in a report

MEANINGS = {
    "miss": "a true keypoint that no detection found or came near",
    "duplicate": "another detection of a keypoint that a better one has already claimed",
    "imprecise": "farther than d from a keypoint that no detection found, but within 2 d of it",
    "wrong_channel": "within d of a keypoint of another channel",
    "background": "no keypoint near, of any channel",
}


class Points(NamedTuple):
    """All detections and true keypoints of a set, padded.

    Attributes:
        xy: `(I, C, N, 2)` float64 detections in original pixels, NaN for none.
        scores: `(I, C, N)` float64 in [0, 1].
        truths: `(I, C, K, 2)` float64 true keypoints in original pixels, NaN for none.
        labelled: `(I, C)` bool; if False, that channel is ignored in that image.
    """

    xy: Tensor
    scores: Tensor
    truths: Tensor
    labelled: Tensor


def match_points(points: Points, channel_names: Sequence[str], threshold_distances: Sequence[float]) -> Matches:
    """Matches as the metrics of training do."""
    metric = AveragePrecision(channel_names, threshold_distances)
    metric.update(*points, torch.arange(len(points.labelled)))
    return metric.matches()


def best_thresholds(matches: Matches, position: int) -> list[float]:
    """Score threshold with the best F1 of each channel, at the threshold distance at `position`.

    If that is undefined, the threshold is the fallback for prediction, `FALLBACK_THRESHOLD`.
    """
    values = []
    for channel in range(len(matches.num_truths)):
        scores, distances, num_truths = matches.of_channel(channel)
        threshold = best_f1(scores, ~distances[:, position].isnan(), num_truths)["best_threshold"]
        values.append(FALLBACK_THRESHOLD if math.isnan(threshold) else threshold)
    return values


def channel_numbers(matches: Matches, channel: int, position: int, threshold: float) -> dict[str, Any]:
    """The numbers of one channel, for tables.

    Args:
        matches: The matches of the whole set.
        channel: Index of the channel.
        position: Index of the threshold distance for precision, recall, F1 and the localisation error.
        threshold: The channel's score threshold.

    Returns:
        The number of `truths`; `average_precision`, one per threshold distance; `median`, `mean` and `p90` of the
        distances of matched detections; `precision`, `recall`, `f1` at the score `threshold`; `best_f1` and its
        `best_threshold`, `best_precision` and `best_recall`. NaN where undefined.
    """
    scores, distances, num_truths = matches.of_channel(channel)
    near = distances[:, position]
    matched = ~near.isnan()
    shown = scores >= threshold
    hits, count = int((matched & shown).sum()), int(shown.sum())
    best = best_f1(scores, matched, num_truths)
    median, p90 = np.quantile(near[matched].numpy(), [0.5, 0.9]).tolist() if matched.any() else (math.nan, math.nan)
    return {
        "truths": num_truths,
        "average_precision": average_precision(scores, ~distances.isnan(), num_truths).tolist(),
        "median": median,
        "mean": near[matched].mean().item(),
        "p90": p90,
        "precision": hits / count if count else math.nan,
        "recall": hits / num_truths if num_truths else math.nan,
        "f1": 2 * hits / (count + num_truths) if num_truths else math.nan,
        "threshold": threshold,
        "best_f1": best["best_f1"],
        "best_threshold": best["best_threshold"],
        "best_precision": best["precision"],
        "best_recall": best["recall"],
    }


def mean_numbers(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the channels for which a value is defined; numbers of true keypoints are summed."""

    def mean(of: Callable[[dict[str, Any]], float]) -> float:
        return mean_of_defined([of(row) for row in rows])

    result: dict[str, Any] = {key: mean(lambda row, key=key: row[key]) for key in rows[0] if key != "average_precision"}
    result["truths"] = sum(row["truths"] for row in rows)
    distances = range(len(rows[0]["average_precision"]))
    result["average_precision"] = [mean(lambda row, t=t: row["average_precision"][t]) for t in distances]
    return result


def curve_points(scores: Tensor, matched: Tensor, num_truths: int, threshold: float) -> dict[str, list[float]]:
    """Precision, recall and score of one curve, thinned evenly along the curve to about `CURVE_POINTS` points.

    The last point that reaches the score threshold and the one with the best F1 are kept. Without true keypoints, the
    curve is empty.
    """
    if not num_truths:
        return {"precision": [], "recall": [], "score": []}
    precision, recall, score = precision_recall_curve(scores, matched, num_truths)
    if len(score) > CURVE_POINTS:
        length = (precision.diff(prepend=precision[:1]).abs() + recall.diff(prepend=recall[:1]).abs()).cumsum(0)
        steps = torch.linspace(0, length[-1].item(), CURVE_POINTS, dtype=length.dtype)
        f1 = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
        ends = torch.tensor([0, max(int((score >= threshold).sum()) - 1, 0), int(f1.argmax()), len(score) - 1])
        kept = torch.cat([torch.searchsorted(length, steps).clamp_max(len(score) - 1), ends]).unique()
        precision, recall, score = precision[kept], recall[kept], score[kept]
    return {"precision": precision.tolist(), "recall": recall.tolist(), "score": score.tolist()}


def calibration_bins(scores: Tensor, matched: Tensor) -> dict[str, list[float]]:
    """Reliability diagram: for each bin of scores, the numbers of detections and of true ones, and the sum of scores.

    Bins are `CALIBRATION_BINS` equal parts of [0, 1]; a score on an edge belongs to the bin above (1 to the last).

    Args:
        scores: `(D,)` float in [0, 1].
        matched: `(D,)` bool, which detections are true.
    """
    # Comparing with edges is exact: by rounding, score * bins would put some scores on an edge into the bin below.
    edges = torch.arange(1, CALIBRATION_BINS, dtype=torch.float64) / CALIBRATION_BINS
    index = torch.searchsorted(edges, scores.double(), right=True)
    return {
        "count": index.bincount(minlength=CALIBRATION_BINS).tolist(),
        "true": index[matched].bincount(minlength=CALIBRATION_BINS).tolist(),
        "score": index.bincount(weights=scores.double(), minlength=CALIBRATION_BINS).tolist(),
    }


def quality(
    points: Points, matches: Matches, threshold_distances: Sequence[float], thresholds: Sequence[float]
) -> list[dict[str, Any]]:
    """Curves, calibration and errors by kind for every threshold distance."""
    result = []
    for position, distance in enumerate(threshold_distances):
        channels = []
        for channel, threshold in enumerate(thresholds):
            scores, distances, num_truths = matches.of_channel(channel)
            matched = ~distances[:, position].isnan()
            curve = curve_points(scores, matched, num_truths, threshold)
            channels.append((curve, calibration_bins(scores, matched)))
        errors = error_taxonomy(*points, distance, torch.tensor(thresholds, dtype=torch.float64))
        rows = zip(ERROR_KINDS, errors.counts.tolist(), errors.gains.tolist(), strict=True)
        result.append(
            {
                "curves": [curve for curve, _ in channels],
                "bins": [bins for _, bins in channels],
                "errors": [
                    {"name": kind.replace("_", " "), "meaning": MEANINGS[kind], "count": counts, "gain": gains}
                    for kind, counts, gains in rows
                ],
            }
        )
    return result


def histogram(matches: Matches, threshold_distances: Sequence[float], position: int) -> dict[str, list]:
    """Distances of matched detections per channel as a histogram: `HISTOGRAM_BINS` bins up to a threshold distance."""
    limit = float(threshold_distances[position])
    counts = []
    for channel in range(len(matches.num_truths)):
        distances = matches.of_channel(channel)[1][:, position]
        near = distances[~distances.isnan()]
        index = (near * HISTOGRAM_BINS / limit).long().clamp_max(HISTOGRAM_BINS - 1)
        counts.append(index.bincount(minlength=HISTOGRAM_BINS).tolist())
    return {"edges": [limit * i / HISTOGRAM_BINS for i in range(HISTOGRAM_BINS + 1)], "counts": counts}


def image_errors(
    points: Points, matches: Matches, position: int, distance: float, thresholds: Sequence[float]
) -> Tensor:
    """How bad each image is, `(I,)` float64: misses plus false positives at the thresholds.

    To break ties, the mean distance of the true detections, as a fraction of the threshold distance, is added; it is
    below 1.
    """
    shown = matches.scores >= torch.tensor(thresholds, dtype=torch.float64)[matches.channels]
    near = matches.distances[:, position]
    found = shown & ~near.isnan()
    n_images = len(points.labelled)
    images = matches.images
    true = images[found].bincount(minlength=n_images)
    false = images[shown].bincount(minlength=n_images) - true
    truths = (~points.truths.isnan().any(-1) & points.labelled[..., None]).sum((1, 2))
    off = images[found].bincount(weights=near[found], minlength=n_images) / true.clamp_min(1)
    return (truths - true + false).double() + off / (distance * (1 + 1e-9))
