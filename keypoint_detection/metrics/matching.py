"""Which detections are right: greedy matching of detections to true keypoints.

G groups (a channel of an image), N detections, K true keypoints, T threshold distances, P pairs of a detection and a
true keypoint of its group that are near enough to match.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Distances that are computed at once, so that the memory in use does not grow with the data.
_DISTANCES_AT_ONCE = 2**20


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
    lead, detections, keypoints = xy.shape[:-2], xy.shape[-2], truths.shape[-2]
    groups = math.prod(lead)
    found = match_groups(
        _float64(xy).reshape(groups, detections, 2),
        descending_order(_float64(scores).ravel()),
        _float64(truths).reshape(groups, keypoints, 2),
        _float64(distances),
    )
    return torch.from_numpy(found).view(*lead, detections, len(distances))


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def descending_order(scores: np.ndarray) -> np.ndarray:
    """Order of `(n,)` scores from high to low, equal ones in the order given."""
    # The default algorithm is several times as fast as a stable one, which only those of equal score need.
    order = np.argsort(-scores)
    ordered = scores[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        tied = np.unique(np.append(same, same + 1))
        order[tied] = order[tied][np.lexsort((order[tied], -ordered[tied]))]
    return order


def match_groups(xy: np.ndarray, order: np.ndarray, truths: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Match arrays; numpy, because a process that shares its cores waits long for the threads of small torch tensors.

    Args:
        xy: `(G, N, 2)` detections, NaN for none.
        order: `(G * N,)` flat detections of all groups in the order in which they choose.
        truths: `(G, K, 2)` true keypoints, NaN for none.
        limits: `(T,)` threshold distances.

    Returns:
        `(G, N, T)` distances, NaN where a detection is a false positive.
    """
    (groups, detections), keypoints = xy.shape[:2], truths.shape[1]
    result = np.full((len(limits), len(order)), np.nan)
    if result.size and keypoints:
        turns = np.empty(len(order), dtype=np.int64)
        turns[order] = np.arange(len(order))
        at_once = max(1, _DISTANCES_AT_ONCE // (detections * keypoints))
        for first in range(0, groups, at_once):
            chunk = slice(first, first + at_once)
            detection, truth, distance = _near_pairs(xy[chunk], truths[chunk], limits.max())
            turn = turns[detection + first * detections]
            by_turn = turn.argsort(kind="stable")
            turn, truth, distance = turn[by_turn], truth[by_turn], distance[by_turn]
            for threshold, limit in enumerate(limits):
                near = distance <= limit
                winner, won = _take_turns(turn[near], truth[near], distance[near])
                result[threshold, order[winner]] = won
    return result.T.reshape(groups, detections, len(limits))


def _near_pairs(xy: np.ndarray, truths: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of `(G, N, 2)` and `(G, K, 2)` within the limit: `(P,)` flat detections, flat true keypoints, distances."""
    x, y = np.ascontiguousarray(xy.transpose(2, 1, 0))
    true_x, true_y = np.ascontiguousarray(truths.transpose(2, 1, 0))
    # A comparison with NaN is False, so that what is missing is near nothing.
    near = np.abs(x[:, None] - true_x) <= limit
    detection, truth, group = np.unravel_index(np.flatnonzero(near), near.shape)
    squared = np.square(x[detection, group] - true_x[truth, group])
    squared += np.square(y[detection, group] - true_y[truth, group])
    distance = np.sqrt(squared)
    within = distance <= limit
    detection, truth, group = detection[within], truth[within], group[within]
    return group * len(x) + detection, group * len(true_x) + truth, distance[within]


def _take_turns(turn: np.ndarray, truth: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let each detection take the nearest true keypoint that is left when its turn comes.

    In each round a detection takes its nearest keypoint for good if none before it could still want that one; both
    then leave. The first of those that remain always succeeds, and nearly all do in the first round.

    Args:
        turn: `(P,)` turn of the pair's detection, in ascending order.
        truth: `(P,)` the pair's true keypoint, a flat index.
        distance: `(P,)` their distance.

    Returns:
        The turns of the detections that took one, and their distances.
    """
    turns, distances = [turn[:0]], [distance[:0]]
    if len(turn):
        first_turn = np.empty(truth.max() + 1, dtype=np.int64)
        truth_left = np.ones(truth.max() + 1, dtype=bool)
        detection_left = np.ones(turn[-1] + 1, dtype=bool)
    while len(turn):
        starts = np.flatnonzero(np.append(True, turn[1:] != turn[:-1]))
        nearest = np.minimum.reduceat(distance, starts).repeat(np.diff(starts, append=len(turn)))
        chosen = np.flatnonzero(distance == nearest)
        chosen = chosen[np.append(True, turn[chosen[1:]] != turn[chosen[:-1]])]  # one of those at equal distance
        first_turn[truth[::-1]] = turn[::-1]  # of several assignments to one element the last one stays
        chosen = chosen[first_turn[truth[chosen]] == turn[chosen]]
        turns.append(turn[chosen])
        distances.append(distance[chosen])
        detection_left[turn[chosen]] = truth_left[truth[chosen]] = False
        left = detection_left[turn] & truth_left[truth]
        turn, truth, distance = turn[left], truth[left], distance[left]
    return np.concatenate(turns), np.concatenate(distances)
