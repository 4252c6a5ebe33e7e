"""Which detections are right: greedy matching of detections to true keypoints.

G groups (a channel of an image), N detections, K true keypoints, T threshold distances.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def match(xy: Tensor, scores: Tensor, truths: Tensor, distances: Tensor) -> Tensor:
    """Match detections to true keypoints, separately for each leading index and each threshold distance.

    Detections go in descending score, those of equal score in the order given. Each takes the nearest true keypoint
    that is within the distance and not taken yet.

    Args:
        xy: `(..., N, 2)` detections in pixels, NaN for none.
        scores: `(..., N)` scores.
        truths: `(..., K, 2)` true keypoints in pixels, NaN for none.
        distances: `(T,)` threshold distances in pixels.

    Returns:
        `(..., N, T)` float64 on the CPU, the distance in pixels to the true keypoint that was taken; NaN where a
        detection is a false positive.
    """
    lead, detections = xy.shape[:-2], xy.shape[-2]
    groups = math.prod(lead)
    # numpy, because a process that shares its cores with data workers waits long for the threads of small torch tensors
    order = np.argsort(-_float64(scores).reshape(groups, detections), axis=1, kind="stable")
    x, y = np.take_along_axis(_float64(xy).reshape(groups, detections, 2), order[..., None], axis=1).transpose(2, 1, 0)
    true_x, true_y = _float64(truths).reshape(groups, truths.shape[-2], 2).transpose(2, 1, 0)
    ranked = _match_ranked(
        np.ascontiguousarray(x),
        np.ascontiguousarray(y),
        np.ascontiguousarray(true_x),
        np.ascontiguousarray(true_y),
        _float64(distances),
    )
    result = np.empty((groups, detections, len(distances)))
    np.put_along_axis(result, order[..., None], ranked.transpose(2, 1, 0), axis=1)
    return torch.from_numpy(result).view(*lead, detections, len(distances))


def _match_ranked(
    x: np.ndarray, y: np.ndarray, true_x: np.ndarray, true_y: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Match detections `(N, G)` in descending score to true keypoints `(K, G)` within `(T,)` limits -> `(T, N, G)`.

    The only loop is over ranks, one detection of every group at a time: which true keypoints are left for a detection
    depends on all those before it.
    """
    result = np.full((len(limits), *x.shape), np.nan)
    taken = np.zeros((len(limits), *true_x.shape), dtype=bool)
    if not taken.size:
        return result
    for rank in range(len(x)):
        squared = np.square(x[rank] - true_x) + np.square(y[rank] - true_y)
        distances = np.sqrt(squared, out=squared)
        # A comparison with NaN is False, so that what is missing is near nothing.
        some = (distances <= limits.max()).any(axis=0).nonzero()[0]
        if len(some):
            near = distances[:, some]
            free = np.where((near <= limits[:, None, None]) & ~taken[:, :, some], near, np.inf)
            chosen = free.argmin(axis=1)
            nearest = np.take_along_axis(free, chosen[:, None], axis=1)[:, 0]
            limit, group = (nearest < np.inf).nonzero()
            taken[limit, chosen[limit, group], some[group]] = True
            result[limit, rank, some[group]] = nearest[limit, group]
    return result


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
