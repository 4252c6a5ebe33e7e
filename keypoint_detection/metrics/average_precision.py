"""Average precision: how many true keypoints are found, and at what cost in false detections.

D detections, T threshold distances, N detections of one image, K its true keypoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from keypoint_detection.log_names import log_name
from keypoint_detection.metrics.base import KeypointMetric, drop_missing


def hits_at_thresholds(scores: Tensor, true_positives: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The number of detections at every score threshold, and how many of them are correct.

    Detections with equal scores enter together, as one step.

    Args:
        scores: `(D,)` scores of the detections of the whole set, none NaN.
        true_positives: `(D,)` or `(D, T)` bool, which of them are correct.

    Returns:
        The `(n,)` distinct scores in descending order; for each, how many detections have at least that score, `(n,)`,
        and how many of these are correct, `(n,)` or `(n, T)`.
    """
    order = scores.numpy().argsort()[::-1]  # need not be stable: equal scores are one step
    ordered = scores.numpy()[order]
    last_of_score = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    return ordered[last_of_score], last_of_score + 1, true_positives.numpy()[order].cumsum(axis=0)[last_of_score]


def precision_recall_curve(scores: Tensor, true_positives: Tensor, num_truths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Precision and recall at every score threshold.

    Detections with equal scores enter together, as one step.

    Args:
        scores: `(D,)` scores of the detections of the whole set, none NaN.
        true_positives: `(D,)` or `(D, T)` bool, which of them are correct.
        num_truths: number of true keypoints in the whole set.

    Returns:
        Precision and recall, `(n,)` or `(n, T)` float64, and the `(n,)` distinct scores in descending order that they
        belong to (a detection counts if its score is at least that). Recall is NaN without any true keypoint.
    """
    thresholds, counts, hits = hits_at_thresholds(scores, true_positives)
    precision, recall = (hits.T / counts).T, hits / (num_truths or math.nan)
    return torch.from_numpy(precision), torch.from_numpy(recall), torch.from_numpy(thresholds)


def average_precision(scores: Tensor, true_positives: Tensor, num_truths: int) -> Tensor:
    """Area under the precision envelope over recall.

    The envelope at a recall is the highest precision at that recall or a higher one (Everingham et al. 2010, The Pascal
    Visual Object Classes Challenge, which uses all points since 2010).

    Args:
        scores: `(D,)` scores of the detections of the whole set, none NaN.
        true_positives: `(D,)` or `(D, T)` bool, which of them are correct.
        num_truths: number of true keypoints in the whole set.

    Returns:
        `()` or `(T,)` float64 in [0, 1], NaN without any true keypoint.
    """
    if not num_truths:
        return torch.full(true_positives.shape[1:], math.nan, dtype=torch.float64)
    order = scores.numpy().argsort()
    ordered = scores.numpy().take(order)
    # How many detections have a lower score; for several with equal scores, the position of the first of them.
    lower = np.arange(len(ordered))
    rises = ordered[1:] != ordered[:-1]
    if not rises.all():
        lower[1:] *= rises
        lower = np.maximum.accumulate(lower)
    values = []
    for right in true_positives.reshape(len(ordered), math.prod(true_positives.shape[1:])).numpy().T:
        # The curve rises only at correct detections. From the lowest of their scores to the highest: how many correct
        # detections score at least as high, divided by how many detections do. Among equal scores, the first count is
        # right; the later ones are too low, and vanish under the envelope.
        climbs = np.flatnonzero(right.take(order))
        precision = np.arange(len(climbs), 0, -1) / (len(ordered) - lower.take(climbs))
        values.append(np.maximum.accumulate(precision).sum() / num_truths)
    return torch.from_numpy(np.array(values)).reshape(true_positives.shape[1:])


def mean_of_defined(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN, NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


class AveragePrecision(KeypointMetric):
    """Average precision per channel and threshold distance, and its means.

    Logs `meanAP`, `meanAP/d=2` and `AP/<channel>/d=2`. A channel without true keypoints has no average precision (NaN)
    and is left out of the means.

    Args:
        channel_names: names of the channels, in the order of the tensors.
        threshold_distances: distances in pixels within which a detection may match a true keypoint.
    """

    higher_is_better = True

    def compute(self) -> dict[str, float]:
        """Average precision in [0, 1] by log name."""
        matches = self.matches()
        per_channel = {}
        for channel, name in enumerate(self.channel_names):
            scores, distances, num_truths = matches.of_channel(channel)
            per_channel[name] = average_precision(scores, ~distances.isnan(), num_truths).tolist()
        means = [mean_of_defined(values) for values in zip(*per_channel.values(), strict=True)]
        result = {"meanAP": mean_of_defined(means)}
        for position, distance in enumerate(self.threshold_distances):
            result[log_name("meanAP", distance=distance)] = means[position]
            result |= {log_name("AP", name, distance): values[position] for name, values in per_channel.items()}
        return result


class KeypointAveragePrecision(KeypointMetric):
    """Average precision of one class of keypoints, for lists of detections per image.

    Every image that is passed counts, on all processes together, even if it is passed twice.

    Args:
        threshold_distances: distances in pixels within which a detection may match a true keypoint.
    """

    higher_is_better = True

    def __init__(self, threshold_distances: Sequence[float]) -> None:
        super().__init__(("keypoints",), threshold_distances)

    @torch.no_grad()
    def update(
        self,
        predictions: Sequence[tuple[Tensor | np.ndarray, Tensor | np.ndarray]],
        targets: Sequence[Tensor | np.ndarray],
    ) -> None:
        """Add images.

        Args:
            predictions: detections of each image: xy `(N, 2)` in pixels and scores `(N,)`. Those with NaN do not count,
                so you can pass what `heatmaps.decode` returns.
            targets: true keypoints of each image: xy `(K, 2)` in pixels. Those with NaN do not count.

        Raises:
            ValueError: If the numbers of images differ, or those of positions and scores of an image, or positions are
                not x and y.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"got predictions for {len(predictions)} images and targets for {len(targets)}")
        if not len(targets):
            return
        positions, values = zip(*predictions, strict=True)
        xy, num_detections = _join(positions, 2)
        scores, num_scores = _join(values, 1)
        truths, num_truths = _join(targets, 2)
        if not torch.equal(num_detections, num_scores):
            image = int((num_detections != num_scores).nonzero()[0])
            raise ValueError(f"image {image} has {num_detections[image]} positions and {num_scores[image]} scores")
        rows = torch.empty(len(xy), 3, dtype=torch.float64)
        rows[:, :2], rows[:, 2:] = xy, scores
        detections, num_detections = drop_missing(rows, num_detections)
        truths, num_truths = drop_missing(truths.double(), num_truths)
        never_repeated = torch.full((len(targets),), -1)
        self._append(never_repeated, torch.stack([num_detections, num_truths], dim=1)[:, None], detections, truths)

    def compute(self) -> dict[float, float]:
        """Average precision in [0, 1] by threshold distance, NaN without any true keypoint."""
        scores, distances, num_truths = self.matches().of_channel(0)
        values = average_precision(scores, ~distances.isnan(), num_truths).tolist()
        return dict(zip(self.threshold_distances, values, strict=True))


def _join(images: Sequence[Tensor | np.ndarray], columns: int) -> tuple[Tensor, Tensor]:
    """The rows of all images concatenated, on the CPU, and the number of rows of each image `(B,)`."""
    # There may be hundreds of small tensors, so each of them is handled with a single call.
    tensors = images if set(map(type, images)) == {Tensor} else [torch.as_tensor(image) for image in images]
    try:
        rows = torch.stack(tensors)  # fails if shapes differ, which is faster than checking each of them
        counts = torch.full((len(tensors),), tensors[0].numel() // columns)
    except RuntimeError:
        try:
            rows = torch.cat(tensors)
        except RuntimeError as error:
            if columns == 1 or len({tensor.shape[-1:] for tensor in tensors}) == 1:
                raise  # another problem, such as tensors on different devices
            raise ValueError(f"got positions of different widths, expected (N, {columns})") from error
        counts = torch.from_numpy(np.fromiter(map(Tensor.numel, tensors), np.int64, len(tensors)) // columns)
    if rows.numel() and columns > 1 and rows.shape[-1] != columns:
        raise ValueError(f"got positions of shape {tuple(tensors[0].shape)}, expected (N, {columns})")
    return rows.reshape(-1, columns).cpu(), counts
