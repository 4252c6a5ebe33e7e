"""Average precision: how many true keypoints are found, at what cost in false detections.

D detections, T threshold distances, N detections of one image, K its true keypoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from keypoint_detection.metrics.base import KeypointMetric


def precision_recall_curve(scores: Tensor, true_positives: Tensor, num_truths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Precision and recall at every score threshold.

    Detections of equal score enter together, as one step.

    Args:
        scores: `(D,)` scores of the detections of the whole set.
        true_positives: `(D,)` or `(D, T)` bool, which of them are right.
        num_truths: number of true keypoints in the whole set.

    Returns:
        Precision and recall, `(n,)` or `(n, T)` float64, and the `(n,)` distinct scores in descending order that they
        belong to (a detection counts when its score is at least that). Recall is NaN without any true keypoint.
    """
    order = np.argsort(-scores.numpy())
    ordered = scores.numpy()[order]
    last_of_score = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    hits = true_positives.numpy()[order].cumsum(axis=0, dtype=np.float64)[last_of_score]
    detected = (last_of_score + 1.0).reshape(-1, *[1] * (hits.ndim - 1))
    curve = hits / detected, hits / (num_truths or math.nan), ordered[last_of_score]
    return tuple(map(torch.from_numpy, curve))


def average_precision(scores: Tensor, true_positives: Tensor, num_truths: int) -> Tensor:
    """Area under the precision envelope over recall.

    The envelope at a recall is the highest precision at that recall or a higher one (Everingham et al. 2010, The Pascal
    Visual Object Classes Challenge, from 2010 on with all points).

    Args:
        scores: `(D,)` scores of the detections of the whole set.
        true_positives: `(D,)` or `(D, T)` bool, which of them are right.
        num_truths: number of true keypoints in the whole set.

    Returns:
        `()` or `(T,)` float64 in [0, 1], NaN without any true keypoint.
    """
    precision, recall, _ = precision_recall_curve(scores, true_positives, num_truths)
    if not num_truths:
        return precision.new_full(true_positives.shape[1:], math.nan)
    if not len(precision):
        return precision.new_zeros(true_positives.shape[1:])
    envelope = precision.flip(0).cummax(0).values.flip(0)
    steps = recall.diff(dim=0, prepend=torch.zeros_like(recall[:1]))
    return (envelope * steps).sum(0)


def mean_of_defined(values: Sequence[float]) -> float:
    """Mean of those values that are not NaN, NaN if there are none."""
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
            result[f"meanAP/d={distance:g}"] = means[position]
            result |= {f"AP/{name}/d={distance:g}": values[position] for name, values in per_channel.items()}
        return result


class KeypointAveragePrecision(KeypointMetric):
    """Average precision of one class of keypoints, for lists of detections per image.

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
            predictions: for each image its detections, xy `(N, 2)` in pixels and scores `(N,)`. Those with NaN do not
                count, so that what `heatmaps.decode` returns can be passed on.
            targets: for each image its true keypoints, xy `(K, 2)` in pixels, NaN likewise.

        Raises:
            ValueError: If the numbers of images, or of positions and scores of an image, differ.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"got predictions for {len(predictions)} images and targets for {len(targets)}")
        xy = [_rows(positions, 2) for positions, _ in predictions]
        scores = [_rows(values, 1) for _, values in predictions]
        truths = [_rows(positions, 2) for positions in targets]
        counts = torch.tensor([list(map(len, xy)), list(map(len, truths)), list(map(len, scores))])
        differing = (counts[0] != counts[2]).nonzero()[:, 0].tolist()
        if differing:
            image = differing[0]
            raise ValueError(f"image {image} has {counts[0, image]} positions and {counts[2, image]} scores")
        if not xy:
            return
        detections = torch.cat([torch.cat(xy), torch.cat(scores)[:, None]], dim=1).cpu().double()
        detections, num_detections = _drop_missing(detections, counts[0])
        positions, num_truths = _drop_missing(torch.cat(truths).cpu().double(), counts[1])
        never_repeated = torch.full((len(targets),), -1)
        self._append(never_repeated, torch.stack([num_detections, num_truths], dim=1)[:, None], detections, positions)

    def compute(self) -> dict[float, float]:
        """Average precision in [0, 1] by threshold distance, NaN without any true keypoint."""
        scores, distances, num_truths = self.matches().of_channel(0)
        values = average_precision(scores, ~distances.isnan(), num_truths).tolist()
        return dict(zip(self.threshold_distances, values, strict=True))


def _rows(values: Tensor | np.ndarray, ndim: int) -> Tensor:
    """The values as a tensor; a flat one, such as an empty list gives, becomes rows of two."""
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(values)
    return tensor if tensor.ndim == ndim else tensor.reshape(-1, 2)


def _drop_missing(rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Drop rows with NaN: `(n, ...)` rows, `(B,)` number of each image's -> the same of those that remain."""
    present = ~rows.isnan().any(1)
    if present.all():
        return rows, counts
    images = torch.arange(len(counts)).repeat_interleave(counts)
    return rows[present], torch.bincount(images[present], minlength=len(counts))
