"""Which detections are correct: greedy matching of detections to true keypoints.

G groups (a channel of an image), N detections, K true keypoints, T threshold distances, P pairs of a detection and a
true keypoint of its group that are close enough to match.
"""

from __future__ import annotations

import numpy as np

# Maximum number of distances that are computed at once, so that memory use does not grow with the data.
_DISTANCES_AT_ONCE = 2**20

Coordinates = tuple[np.ndarray, np.ndarray]


def descending_order(scores: np.ndarray) -> np.ndarray:
    """Order of the scores `(N, G)` of each group from high to low, equal ones in their original order, NaN last."""
    return np.argsort(-scores, axis=0, kind="stable")


def is_descending(scores: np.ndarray, starts: np.ndarray) -> bool:
    """Whether the scores `(D,)` of each group are already in that order, like those of decoded keypoints.

    Args:
        scores: Those of all groups in turn, none NaN.
        starts: Index of the first score of each group that has any.
    """
    rises = np.ones(len(scores), dtype=bool)
    np.greater(scores[1:], scores[:-1], out=rises[1:])
    rises[starts] = False
    return not rises.any()


def match_groups(
    xy: Coordinates,
    truths: Coordinates,
    limits: np.ndarray,
    places: np.ndarray,
    found: np.ndarray,
    taken: np.ndarray | None = None,
) -> None:
    """Match detections to true keypoints, separately for each group and each threshold distance.

    Detections take turns. Each takes the nearest true keypoint that is within the distance and not taken yet. This uses
    numpy, because a process that shares its cores waits a long time for torch's threads, even on small tensors.

    Args:
        xy: x `(N, G)` and y `(N, G)` of detections in the order in which those of a group choose, NaN for none.
        truths: x `(G, K)` and y `(G, K)` of true keypoints, NaN for none.
        limits: `(T,)` threshold distances.
        places: `(N, G)` the column of each detection in `found`; any column for a detection that is missing.
        found: `(T, D)` float64, filled with NaN. Gets the distances of the detections that take a true keypoint.
        taken: `(T, D)` int64, or None. Gets the column in `truths` of the keypoint that they take.
    """
    detections, groups = xy[0].shape
    at_once = max(1, _DISTANCES_AT_ONCE // max(1, detections * truths[0].shape[1]))
    for first in range(0, groups, at_once):
        chunk = slice(first, first + at_once)
        x, y, true_x, true_y = *(side[:, chunk] for side in xy), *(side[chunk] for side in truths)
        turn, truth, distance = _near_pairs((x, y), (true_x, true_y), limits.max())
        # All thresholds at once: each has its own copy of the detections and true keypoints.
        pair = np.flatnonzero(distance <= limits[:, None])
        threshold = pair // max(1, len(distance))
        pair -= threshold * len(distance)
        winner, prize, won = _take_turns(
            turn.take(pair) + x.size * threshold, truth.take(pair) + true_x.size * threshold, distance.take(pair)
        )
        threshold = winner // max(1, x.size)
        winner -= x.size * threshold
        cells = places[:, chunk].take(winner) + found.shape[1] * threshold
        found.put(cells, won)
        if taken is not None:
            taken.put(cells, prize % max(1, true_x.shape[1]))


def _near_pairs(xy: Coordinates, truths: Coordinates, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of `(N, G)` detections and `(G, K)` true keypoints whose distance is at most the limit.

    The turn of a detection is its flat index in `(N, G)`; a true keypoint is given by its flat index in `(G, K)`.

    Returns:
        `(P,)` turns in ascending order, true keypoints, and distances.
    """
    x, y, true_x, true_y = (side.ravel() for side in (*xy, *truths))
    keypoints, per_rank = truths[0].shape[1], max(1, true_x.size)
    near = [np.zeros(0, dtype=np.int64)]
    ranks = max(1, _DISTANCES_AT_ONCE // per_rank)  # detections of each group that are compared at once
    for first in range(0, len(xy[0]), ranks):
        apart = xy[0][first : first + ranks].repeat(keypoints, axis=1)
        apart -= true_x
        # A comparison with NaN is False, so missing ones are in no pair.
        near.append(np.flatnonzero(np.abs(apart, out=apart) <= limit) + first * true_x.size)
    pair = np.concatenate(near)
    turn, truth = pair // max(1, keypoints), pair % per_rank
    squared = np.square(x.take(turn) - true_x.take(truth))
    squared += np.square(y.take(turn) - true_y.take(truth))
    distance = np.sqrt(squared)
    pair = np.flatnonzero(distance <= limit)  # usually few of those that are near in x
    return turn.take(pair), truth.take(pair), distance.take(pair)


def _take_turns(turn: np.ndarray, truth: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Let each detection take the nearest true keypoint that is left when its turn comes.

    In each round, a detection takes its nearest keypoint if no earlier detection could still take that one; both are
    then removed. The first of the remaining detections always succeeds, and almost all do in the first round.

    Args:
        turn: `(P,)` turn of the pair's detection, in ascending order.
        truth: `(P,)` flat index of the pair's true keypoint.
        distance: `(P,)` their distance.

    Returns:
        The turns of the detections that took a true keypoint, these keypoints, and their distances.
    """
    turns, truths, distances = [turn[:0]], [truth[:0]], [distance[:0]]
    if len(turn):
        first_turn = np.empty(truth.max() + 1, dtype=np.int64)
        truth_left = np.ones(truth.max() + 1, dtype=bool)
        detection_left = np.ones(turn[-1] + 1, dtype=bool)
    while len(turn):
        starts = np.flatnonzero(_changes(turn))
        chosen = starts
        if len(starts) < len(turn):
            counts = np.diff(starts, append=len(turn))
            nearest = np.minimum.reduceat(distance, starts).repeat(counts)
            chosen = np.flatnonzero(distance == nearest)
            chosen = chosen[_changes(turn.take(chosen))]  # one of those at equal distance
        first_turn[truth[::-1]] = turn[::-1]  # if an element is assigned several times, the last value stays
        chosen_turn, chosen_truth = turn.take(chosen), truth.take(chosen)
        stays = np.flatnonzero(first_turn.take(chosen_truth) == chosen_turn)
        chosen, chosen_turn, chosen_truth = chosen.take(stays), chosen_turn.take(stays), chosen_truth.take(stays)
        turns.append(chosen_turn)
        truths.append(chosen_truth)
        distances.append(distance.take(chosen))
        detection_left[chosen_turn] = truth_left[chosen_truth] = False
        left = np.flatnonzero(detection_left.take(turn) & truth_left.take(truth))
        turn, truth, distance = turn.take(left), truth.take(left), distance.take(left)
    return np.concatenate(turns), np.concatenate(truths), np.concatenate(distances)


def _changes(values: np.ndarray) -> np.ndarray:
    """`(n,)` bool, True where a value differs from the previous one, and for the first one."""
    changes = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes
