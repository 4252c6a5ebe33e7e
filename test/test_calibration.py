"""Thresholds with a promise: exact on small cases, and kept on average over many random sets of labelled images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keypoint_detection.calibration import Calibration, calibrate_channel, conformal_threshold, images_needed
from keypoint_detection.metrics import Matches


def brute_force(scores, images, num_truths, recall):
    """The largest score that keeps the bound, each tried in turn."""
    n = len(num_truths)
    for threshold in sorted(set(scores), reverse=True):
        losses = [
            1 - sum(s >= threshold and i == image for s, i in zip(scores, images, strict=True)) / num_truths[image]
            for image in range(n)
        ]
        if (sum(losses) + 1) / (n + 1) <= 1 - recall + 1e-12:
            return threshold
    return None


@given(
    found=st.lists(
        st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.8, 0.9]), min_size=0, max_size=3), min_size=1, max_size=12
    ),
    missed=st.integers(0, 2),
    recall=st.sampled_from([0.1, 0.5, 0.8, 0.9]),
)
def test_the_threshold_is_the_largest_that_keeps_the_bound(found, missed, recall):
    num_truths = [max(1, len(scores) + missed * (i % 2)) for i, scores in enumerate(found)]
    scores = [score for image in found for score in image]
    images = [i for i, image in enumerate(found) for _ in image]
    expected = brute_force(scores, images, num_truths, recall)
    got = conformal_threshold(np.array(scores, float), np.array(images, int), np.array(num_truths), recall)
    assert got == expected


def test_nineteen_images_are_needed_to_promise_095_and_they_have_to_be_perfect():
    assert images_needed(0.95) == 19
    assert images_needed(0.9) == 9
    scores = np.linspace(0.4, 0.9, 19)
    assert conformal_threshold(scores, np.arange(19), np.ones(19), 0.95) == 0.4
    assert conformal_threshold(scores[1:], np.arange(18), np.ones(18), 0.95) is None
    assert conformal_threshold(np.ones(9), np.arange(9), np.ones(9), 0.9) == 1  # 1 - 0.9 is less than 1 / 10
    assert conformal_threshold(scores[1:], np.arange(18), np.ones(19), 0.95) is None


def simulate(rng, n):
    """Images of an unequal number of keypoints whose scores share the image's quality; some are never found."""
    num_truths = rng.integers(1, 6, n)
    quality = rng.beta(2, 2, n)
    image = np.repeat(np.arange(n), num_truths)
    scores = (quality[image] + rng.beta(3, 2, len(image))) / 2
    found = rng.random(len(image)) < 0.98
    return scores[found], image[found], num_truths


@pytest.mark.parametrize(("recall", "n"), [(0.8, 10), (0.9, 40)])
def test_the_promise_holds_on_new_images_on_average_and_is_not_wasteful(recall, n):
    rng = np.random.default_rng(0)
    fresh_scores, fresh_images, fresh_truths = simulate(rng, 20_000)
    weights = 1 / fresh_truths[fresh_images]
    order = np.argsort(fresh_scores)
    tail = np.append(np.cumsum(weights[order][::-1])[::-1], 0) / len(fresh_truths)
    recalls = []
    for _ in range(600):
        threshold = conformal_threshold(*simulate(rng, n), recall)
        # Where nothing can be promised, all detections count.
        threshold = -math.inf if threshold is None else threshold
        recalls.append(tail[np.searchsorted(fresh_scores[order], threshold)])
    mean, error = np.mean(recalls), np.std(recalls) / math.sqrt(len(recalls))
    assert mean >= recall - 3 * error
    # The bound of the method: at most 2 / (n + 1) above, for scores without ties (here an image may hold several).
    assert mean <= recall + 2 / (n + 1) + 0.03


def matches(rows, num_truths):
    """Matches from rows of channel, image, score and distance (NaN for a false one)."""
    columns = zip(*rows, strict=True)
    channel, image, score, distance = (torch.tensor(column, dtype=torch.float64) for column in columns)
    return Matches(channel.long(), image.long(), score, distance[:, None], torch.tensor(num_truths))


def test_a_channel_counts_true_detections_of_its_own_images_only():
    rows = [(0, 3, 0.9, 1.0), (0, 5, 0.99, math.nan), (0, 8, 0.7, 1.5), (1, 3, 0.2, 0.5)]
    found = calibrate_channel(matches(rows, [2, 1]), 0, 0, {3: 1, 8: 1}, 0.6)
    assert (found.threshold, found.images, found.keypoints, found.problem) == (0.7, 2, 2, None)
    assert found.measured_recall == 1.0


def test_a_detection_has_to_lie_within_the_chosen_distance():
    both = matches([(0, 3, 0.9, 1.0), (0, 8, 0.7, math.nan)], [2])
    both = both._replace(distances=torch.tensor([[1.0, 1.0], [math.nan, 3.0]], dtype=torch.float64))
    assert calibrate_channel(both, 0, 1, {3: 1, 8: 1}, 0.6).threshold == 0.7
    near = calibrate_channel(both, 0, 0, {3: 1, 8: 1}, 0.6)
    assert near.threshold is None
    assert near.measured_recall == 0.5


def test_the_recall_is_measured_at_the_threshold():
    found = calibrate_channel(
        matches([(0, 0, 0.9, 1.0), (0, 1, 0.8, 1.0), (0, 2, 0.7, 1.0)], [3]), 0, 0, {0: 1, 1: 1, 2: 1}, 0.5
    )
    assert found.threshold == 0.8  # (3 - 2 + 1) / (3 + 1) is a half
    assert found.measured_recall == pytest.approx(2 / 3)


def test_it_is_said_why_nothing_can_be_promised():
    few = calibrate_channel(matches([(0, 0, 0.9, 1.0)], [1]), 0, 0, {0: 1}, 0.95)
    assert few.threshold is None
    assert "1 image with this channel" in few.problem
    assert "19" in few.problem
    poor = calibrate_channel(matches([(0, 0, 0.9, 1.0)], [30]), 0, 0, dict.fromkeys(range(30), 1), 0.95)
    assert poor.threshold is None
    assert "out of reach" in poor.problem
    assert poor.measured_recall == pytest.approx(1 / 30)
    # All but one are found, which is more than 0.95, and (1 + 1) / (30 + 1) is more than 1 - 0.95.
    near = calibrate_channel(
        matches([(0, i, 0.9, 1.0) for i in range(29)], [30]), 0, 0, dict.fromkeys(range(30), 1), 0.95
    )
    assert near.threshold is None
    assert near.problem == "out of reach: even all detections find only 0.967 on average over 30 images"
    none = calibrate_channel(matches([(1, 0, 0.9, 1.0)], [0, 1]), 0, 0, {}, 0.95)
    assert none.threshold is None
    assert "0 images" in none.problem
    table = Calibration(0.95, 4.0, {}, {"few": few, "poor": poor}).table().splitlines()
    assert table[0] == "Thresholds that promise a recall of 0.95 within 4 px"
    assert all("no promise" in line for line in table[1:])


def test_the_measured_recall_is_said_to_be_the_mean_of_images_and_not_the_share_of_all_keypoints():
    # all 3 keypoints of one image, and 1 of the 2 of another: 4 of 5, and (1 + 1/2) / 2 in the mean
    detections = [(0, 0, 0.9, 1.0), (0, 0, 0.9, 1.0), (0, 0, 0.9, 1.0), (0, 1, 0.9, 1.0)]
    found = calibrate_channel(matches(detections, [5]), 0, 0, {0: 3, 1: 2}, 0.5)
    assert Calibration(0.5, 4.0, {}, {"corner": found}).table().splitlines()[1] == (
        "corner  0.9000   (0.750 on average over 2 images)"
    )
    assert found.keypoints == 5  # those that are not found too


def test_lines_of_channels_begin_in_one_column_of_a_terminal():
    found = calibrate_channel(matches([(0, 0, 0.9, 1.0)], [1]), 0, 0, {0: 1}, 0.5)
    _, plain, chinese = Calibration(0.5, 4.0, {}, {"nose": found, "頭": found}).table().splitlines()
    assert chinese.replace("頭  ", "nose") == plain
