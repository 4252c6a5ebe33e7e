import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matching import match

from keypoint_detection.metrics import base as base_module
from keypoint_detection.metrics import matching as matching_module
from keypoint_detection.metrics.average_precision import AveragePrecision

NAN = float("nan")


def one_by_one(xy, scores, truths, distance):
    """Greedy matching of one image with plain loops: list of distances, NaN for a false positive."""
    left = {position: truth for position, truth in enumerate(truths) if not any(map(math.isnan, truth))}
    result = [NAN] * len(xy)
    for index in sorted(range(len(xy)), key=lambda index: -scores[index]):
        near = [(math.dist(xy[index], truth), position) for position, truth in left.items()]
        near = [pair for pair in near if pair[0] <= distance]
        if near:
            result[index], position = min(near)
            del left[position]
    return result


# A grid with few steps makes equal distances, equal scores and chains of detections that compete.
steps = st.integers(0, 6).map(float)
points = st.tuples(steps, steps) | st.just((NAN, NAN))


@settings(max_examples=300)
@given(data=st.data(), detections=st.integers(0, 7), keypoints=st.integers(0, 6))
def test_matching_equals_plain_loops(data, detections, keypoints):
    images = data.draw(st.integers(1, 3))
    xy = [data.draw(st.lists(points, min_size=detections, max_size=detections)) for _ in range(images)]
    truths = [data.draw(st.lists(points, min_size=keypoints, max_size=keypoints)) for _ in range(images)]
    level = st.sampled_from([0.1, 0.5, 0.9])
    scores = [data.draw(st.lists(level, min_size=detections, max_size=detections)) for _ in range(images)]
    limits = [1.0, 2.5, 4.0]
    found = match(
        torch.tensor(xy, dtype=torch.float64).view(images, detections, 2),
        torch.tensor(scores, dtype=torch.float64).view(images, detections),
        torch.tensor(truths, dtype=torch.float64).view(images, keypoints, 2),
        torch.tensor(limits),
    )
    assert found.shape == (images, detections, 3)
    for image in range(images):
        for position, limit in enumerate(limits):
            expected = one_by_one(xy[image], scores[image], truths[image], limit)
            np.testing.assert_allclose(found[image, :, position].numpy(), np.array(expected), atol=1e-12)


def test_a_detection_takes_the_nearest_keypoint_that_is_left():
    truths = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    xy = torch.tensor([[1.0, 0.0], [1.2, 0.0], [9.0, 9.0]])
    found = match(xy, torch.tensor([0.5, 0.9, 0.7]), truths, torch.tensor([1.5, 2.0]))
    expected = torch.tensor([[NAN, 2.0], [1.2, 1.2], [NAN, NAN]])
    torch.testing.assert_close(found, expected.double(), equal_nan=True, atol=1e-6, rtol=0)


def test_a_chain_of_detections_that_want_the_same_keypoints():
    # Each detection is nearest to the keypoint that the one before it has taken.
    truths = torch.tensor([[float(10 * i), 0.0] for i in range(6)])
    xy = torch.tensor([[10.0 * i + 4.9, 0.0] for i in range(5)])
    found = match(xy, torch.linspace(0.9, 0.1, 5), truths, torch.tensor([6.0]))
    torch.testing.assert_close(found[:, 0], torch.full((5,), 4.9, dtype=torch.float64), atol=1e-5, rtol=0)
    backwards = torch.tensor([[0.0, 0.0], *[[10.0 * i + 5.1, 0.0] for i in range(5)]])
    found = match(backwards, torch.linspace(0.9, 0.1, 6), truths, torch.tensor([6.0]))
    expected = torch.tensor([0.0, 4.9, 4.9, 4.9, 4.9, 4.9], dtype=torch.float64)
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=0)


def test_matching_in_small_portions_changes_nothing(monkeypatch):
    xy, scores, truths = torch.rand(20, 3, 6, 2) * 20, torch.rand(20, 3, 6), torch.rand(20, 3, 5, 2) * 20
    together = match(xy, scores, truths, torch.tensor([2.0, 5.0]))
    monkeypatch.setattr(matching_module, "_DISTANCES_AT_ONCE", 100)
    torch.testing.assert_close(match(xy, scores, truths, torch.tensor([2.0, 5.0])), together, equal_nan=True)


def test_an_image_with_very_many_keypoints_makes_no_room_in_the_others_and_changes_nothing(monkeypatch):
    random = np.random.default_rng(0)
    numbers = [(20, 5)] * 300 + [(3000, 5), (20, 2000), (700, 900), (0, 7), (9, 0)]
    metric, expected, rows = AveragePrecision(["a"], (2.0, 5.0)), [], []
    for index, (detections, truths) in enumerate(random.permutation(numbers).tolist()):
        xy, true = (torch.tensor(random.integers(0, 100, (1, 1, n, 2))).double() for n in (detections, truths))
        scores = torch.tensor(random.integers(1, 20, (1, 1, detections)) / 20)
        metric.update(xy, scores, true, torch.ones(1, 1, dtype=torch.bool), torch.tensor([index]))
        expected.append(match(xy, scores, true, torch.tensor([2.0, 5.0]))[0, 0])
    matched = base_module.match_groups

    def count_rows(xy, truths, *arguments):
        rows.append(xy[0].size + truths[0].size)
        matched(xy, truths, *arguments)

    monkeypatch.setattr(base_module, "match_groups", count_rows)
    np.testing.assert_array_equal(metric.matches().distances, torch.cat(expected))
    assert sum(rows) < 2 * sum(map(sum, numbers))  # 300 times as many with all groups side by side


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("lowest", [-1, 0], ids=["some never repeated", "all with a number"])
def test_what_a_metric_matches_is_what_plain_loops_match_in_the_first_visit_of_each_image(channels, lowest):
    random = np.random.default_rng(channels)
    for highest in [1, 2, 4] * 10:
        names, limits = [f"channel{c}" for c in range(channels)], (1.0, 2.5)
        metric, rows, num_truths, seen = AveragePrecision(names, limits), [], [0] * channels, set()
        for _ in range(3):
            batch, shape = random.integers(1, 4), (channels, random.integers(0, 5), 2)
            truths = random.integers(0, 6, (batch, channels, random.integers(0, 4), 2)).astype(float)
            xy = random.integers(0, 6, (batch, *shape)).astype(float)
            scores, indices = random.integers(1, 4, xy.shape[:-1]) / 4, random.integers(lowest, highest, batch)
            labelled = random.uniform(size=(batch, channels)) < 0.8
            xy[random.uniform(size=scores.shape) < 0.2] = np.nan
            metric.update(*map(torch.tensor, (xy, scores, truths, labelled, indices)))
            for image, index in enumerate(indices.tolist()):
                if index in seen:
                    continue
                seen |= {index} - {-1}
                for channel in np.flatnonzero(labelled[image]).tolist():
                    num_truths[channel] += truths.shape[2]
                    present = ~np.isnan(xy[image, channel]).any(axis=1)
                    points, values = xy[image, channel][present].tolist(), scores[image, channel][present].tolist()
                    found = [one_by_one(points, values, truths[image, channel].tolist(), limit) for limit in limits]
                    rows += [(channel, index, *row) for row in zip(values, *found, strict=True)]
        matches = metric.matches()
        rows = np.array(sorted(rows, key=lambda row: row[0])).reshape(-1, 5)  # keeps the order within a channel
        columns = (matches.channels, matches.images, matches.scores, *matches.distances.T)
        np.testing.assert_array_equal(np.stack([column.numpy() for column in columns], axis=1), rows)
        assert matches.num_truths.tolist() == num_truths
