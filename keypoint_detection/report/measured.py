"""Matches the data of a report: the basis of its numbers, its gallery and the order of the images.

I images, C channels, N detections, K true keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from keypoint_detection.metrics.base import Matches
from keypoint_detection.report.data import ReportData, ReportImage
from keypoint_detection.report.statistics import Points, best_thresholds, image_errors, match_points


class Measured(NamedTuple):
    """The points of a report, matched within each threshold distance.

    Attributes:
        points: All detections and true keypoints.
        matches: The matches between them within each of `distances`.
        distances: Threshold distances in pixels.
        position: Index in `distances` of the one that the page starts with.
        thresholds: Score threshold of each channel.
    """

    points: Points
    matches: Matches
    distances: list[float]
    position: int
    thresholds: list[float]


def measure(data: ReportData) -> Measured:
    """Checks and matches the data of a report.

    Raises:
        ValueError: If `distance` is not one of the threshold distances, or something does not fit the channels.
    """
    distances = [float(distance) for distance in data.threshold_distances]
    distance = max(distances) if data.distance is None else float(data.distance)
    if distance not in distances:
        raise ValueError(f"distance {distance:g}: expected one of the threshold distances {distances}")
    channels = len(data.channel_names)
    for image in data.images:
        if any(len(values) != channels for values in (image.truths, image.xy, image.scores, image.labelled)):
            raise ValueError(f"image {image.name!r}: expected {channels} channels in each of its arrays")
    position = distances.index(distance)
    points = pad(data.images, channels)
    matches = match_points(points, data.channel_names, distances)
    given = data.score_thresholds
    thresholds = best_thresholds(matches, position) if given is None else [float(value) for value in given]
    if len(thresholds) != channels:
        raise ValueError(f"got {len(thresholds)} score thresholds, expected one for each of {channels} channels")
    return Measured(points, matches, distances, position, thresholds)


def pad(images: Sequence[ReportImage], channels: int) -> Points:
    """The points of images as padded float64 tensors, with values rounded to float32 as in the page."""
    most = max((len(values) for image in images for values in image.scores), default=0)
    most_truths = max((len(values) for image in images for values in image.truths), default=0)
    xy = np.full((len(images), channels, most, 2), np.nan, np.float32)
    scores = np.zeros((len(images), channels, most), np.float32)
    truths = np.full((len(images), channels, most_truths, 2), np.nan, np.float32)
    for i, image in enumerate(images):
        for c in range(channels):
            xy[i, c, : len(image.xy[c])] = image.xy[c]
            scores[i, c, : len(image.scores[c])] = image.scores[c]
            truths[i, c, : len(image.truths[c])] = image.truths[c]
    labelled = np.array([image.labelled for image in images], bool).reshape(-1, channels)
    tensors = (torch.from_numpy(values).double() for values in (xy, scores, truths))
    return Points(*tensors, torch.from_numpy(labelled))


def rank_images(measured: Measured) -> list[int]:
    """Indices of all images, worst first (see `image_errors`)."""
    points, matches, distances, position, thresholds = measured
    errors = image_errors(points, matches, position, distances[position], thresholds)
    return errors.argsort(descending=True, stable=True).tolist()


def worst_images(data: ReportData) -> list[int]:
    """Indices of the images that the gallery will show, worst first: only these need heatmaps and previews.

    The error of an image is the number of its misses and false positives at the score thresholds and `distance`. Ties
    are broken by the mean distance of the true detections, the largest first.
    """
    return rank_images(measure(data))[: data.max_images]
