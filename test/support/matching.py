"""The matching of the metrics, called with tensors."""

from __future__ import annotations

import math

import numpy as np
import torch

from keypoint_detection.metrics.matching import descending_order, match_groups


def match(xy, scores, truths, distances):
    """Matches detections to true keypoints, separately for each leading index and each threshold distance.

    Args:
        xy: `(..., N, 2)` detections in pixels, NaN for none.
        scores: `(..., N)` scores.
        truths: `(..., K, 2)` true keypoints in pixels, NaN for none.
        distances: `(T,)` threshold distances in pixels.

    Returns:
        `(..., N, T)` float64 on the CPU, the distance in pixels to the true keypoint that was taken; NaN where a
        detection is a false positive.
    """
    lead, detections, keypoints = xy.shape[:-2], xy.shape[-2], truths.shape[-2]
    groups = math.prod(lead)
    order = descending_order(_float64(scores).reshape(groups, detections).T).T[..., None]
    x, y = np.take_along_axis(_float64(xy).reshape(groups, detections, 2), order, axis=1).T
    true_xy = _float64(truths).reshape(groups, keypoints, 2)
    result = np.full((len(distances), groups * detections), np.nan)
    places = order[..., 0].T + detections * np.arange(groups)
    match_groups((x, y), (true_xy[..., 0], true_xy[..., 1]), _float64(distances), places, result)
    return torch.from_numpy(result.T.copy()).view(*lead, detections, len(distances))


def _float64(tensor):
    return tensor.detach().cpu().double().numpy()
