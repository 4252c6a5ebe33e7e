"""Which detections are right: greedy matching of detections to true keypoints.

N detections, K true keypoints, T threshold distances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def match(xy: Tensor, scores: Tensor, truths: Tensor, distances: Tensor) -> Tensor:
    """Match detections to true keypoints, separately for each leading index and each threshold distance.

    Detections go in descending score, those of equal score in the order given. Each takes the nearest true keypoint
    that is within the distance and not taken yet.

    The only loop is over the ranks of detections, which greedy matching needs, for all images at once.

    Args:
        xy: `(..., N, 2)` detections in pixels, NaN for none.
        scores: `(..., N)` scores.
        truths: `(..., K, 2)` true keypoints in pixels, NaN for none.
        distances: `(T,)` threshold distances in pixels.

    Returns:
        `(..., N, T)` distance in pixels to the true keypoint that was taken; NaN where a detection is a false positive.
    """
    lead, detections, count = xy.shape[:-2], xy.shape[-2], truths.shape[-2]
    result = xy.new_full((math.prod(lead), detections, len(distances)), math.nan)
    if result.numel() and count:
        ranks = scores.reshape(-1, detections).argsort(dim=1, descending=True, stable=True)
        xy, truths = xy.reshape(-1, detections, 2), truths.reshape(-1, 1, count, 2)
        limits = distances.to(xy)[:, None]
        taken = torch.zeros(len(xy), len(distances), count, dtype=xy.dtype, device=xy.device)
        groups = torch.arange(len(xy), device=xy.device)
        for rank in range(detections):
            detection = ranks[:, rank]
            offset = xy[groups, detection][:, None, None] - truths
            # A comparison with NaN is False: missing detections and true keypoints end up at infinity.
            distance = offset.square().sum(-1).sqrt()
            distance = distance.where(distance <= limits, math.inf) + taken
            nearest, truth = distance.min(dim=2)
            matched = nearest < math.inf
            taken.scatter_add_(2, truth[..., None], torch.where(matched, math.inf, 0.0).to(taken)[..., None])
            result[groups, detection] = nearest.masked_fill(~matched, math.nan)
    return result.view(*lead, detections, len(distances))
