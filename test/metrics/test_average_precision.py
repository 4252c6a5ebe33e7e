import itertools
import math
import random
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keypoint_detection.metrics import groups as groups_module
from keypoint_detection.metrics import matching
from keypoint_detection.metrics.average_precision import (
    KeypointAveragePrecision,
    average_precision,
    precision_recall_curve,
)

NAN = float("nan")


def reference(predictions, targets, distance):
    """Average precision by its definition, with loops, and the curve taken at every score threshold by counting."""
    detections = [
        (score, image, point)
        for image, (xy, scores) in enumerate(predictions)
        for point, score in zip(xy, scores, strict=True)
    ]
    left = [list(image) for image in targets]
    total = sum(map(len, targets))
    hits = []
    for score, image, point in sorted(detections, key=lambda detection: -detection[0]):
        near = [truth for truth in left[image] if math.dist(point, truth) <= distance]
        if near:
            left[image].remove(min(near, key=lambda truth: math.dist(point, truth)))
        hits.append((score, bool(near)))
    if not total:
        return NAN
    curve = []
    for threshold in {score for score, _ in hits}:
        kept = [hit for score, hit in hits if score >= threshold]
        curve.append((sum(kept) / total, sum(kept) / len(kept)))
    # The area under the envelope, recall step by recall step.
    recalls = sorted({0.0, *(recall for recall, _ in curve)})
    return sum(
        (after - before) * max(precision for recall, precision in curve if recall >= after)
        for before, after in itertools.pairwise(recalls)
    )


def random_case(generator, coarse):
    predictions, targets = [], []
    for _ in range(generator.randint(0, 6)):
        detections, keypoints = generator.randint(0, 7), generator.randint(0, 5)

        def point():
            x, y = generator.uniform(0, 12), generator.uniform(0, 12)
            return (float(round(x)), float(round(y))) if coarse else (x, y)

        scores = [generator.choice([0.2, 0.4, 0.6, 0.8]) if coarse else generator.random() for _ in range(detections)]
        predictions.append(([point() for _ in range(detections)], scores))
        targets.append([point() for _ in range(keypoints)])
    return predictions, targets


def computed(predictions, targets, distances):
    metric = KeypointAveragePrecision(distances)
    for image, truths in zip(predictions, targets, strict=True):
        xy, scores = (torch.tensor(values, dtype=torch.float64) for values in image)
        metric.update([(xy, scores)], [torch.tensor(truths, dtype=torch.float64)])
    metric.update([], [])
    return metric.compute()


@pytest.mark.parametrize("coarse", [False, True], ids=["real numbers", "ties everywhere"])
def test_average_precision_equals_the_definition_on_random_cases(coarse):
    generator = random.Random(int(coarse))
    undefined = 0
    for _ in range(500):
        predictions, targets = random_case(generator, coarse)
        for distance, value in computed(predictions, targets, [1, 2.5, 4]).items():
            expected = reference(predictions, targets, distance)
            assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)
            undefined += math.isnan(expected)
    assert undefined < 500


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), groups=st.integers(1, 5), distances=st.integers(1, 60), coarse=st.booleans())
def test_working_on_a_part_of_the_groups_at_once_changes_nothing(seed, groups, distances, coarse):
    predictions, targets = random_case(random.Random(seed), coarse)
    whole = computed(predictions, targets, [1, 2.5, 4])
    with (
        mock.patch.object(groups_module, "_GROUPS_AT_ONCE", groups),
        mock.patch.object(groups_module, "_SMALL", 1),
        mock.patch.object(matching, "_DISTANCES_AT_ONCE", distances),
    ):
        assert computed(predictions, targets, [1, 2.5, 4]) == pytest.approx(whole, abs=0, nan_ok=True)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_the_order_and_the_batches_of_images_do_not_matter(seed, data):
    predictions, targets = random_case(random.Random(seed), coarse=True)
    value = computed(predictions, targets, [2.0])
    order = data.draw(st.permutations(range(len(targets))))
    assert computed([predictions[i] for i in order], [targets[i] for i in order], [2.0]) == pytest.approx(
        value, abs=1e-12, nan_ok=True
    )
    together = KeypointAveragePrecision([2.0])
    together.update([(np.array(xy), np.array(scores)) for xy, scores in predictions], [np.array(t) for t in targets])
    assert together.compute() == pytest.approx(value, abs=1e-12, nan_ok=True)


@settings(max_examples=100)
@given(
    detections=st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5]), st.booleans()), max_size=12),
    more=st.integers(0, 3),
    data=st.data(),
)
def test_detections_of_equal_score_enter_as_one_step(detections, more, data):
    truths = sum(hit for _, hit in detections) + more
    shuffled = data.draw(st.permutations(detections))
    values = [
        average_precision(
            torch.tensor([score for score, _ in rows], dtype=torch.float64),
            torch.tensor([hit for _, hit in rows], dtype=torch.bool),
            truths,
        ).item()
        for rows in (detections, shuffled)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-12, nan_ok=True)


def test_average_precision_by_hand():
    # hit, miss, hit of 3 truths: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3, so the area is 1/3 * 1 + 1/3 * 2/3
    scores, hits = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True])
    assert average_precision(scores, hits, 3).item() == pytest.approx(5 / 9, abs=1e-12)
    # one step of 2 hits in 3 detections: precision 2/3 up to recall 2/3
    assert average_precision(torch.full((3,), 0.5), hits, 3).item() == pytest.approx(4 / 9, abs=1e-12)
    both = average_precision(scores, torch.stack([hits, torch.zeros(3, dtype=torch.bool)], dim=1), 3)
    torch.testing.assert_close(both, torch.tensor([5 / 9, 0.0], dtype=torch.float64))


def test_average_precision_of_nothing():
    nothing = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    assert average_precision(*nothing, 4).item() == 0
    assert math.isnan(average_precision(*nothing, 0).item())
    assert math.isnan(average_precision(torch.tensor([0.5]), torch.tensor([False]), 0).item())
    assert computed([([], [])], [[]], [2.0]) == pytest.approx({2.0: NAN}, nan_ok=True)
    assert computed([([], [])], [[(1.0, 1.0)]], [2.0]) == {2.0: 0.0}


def test_precision_and_recall_by_hand():
    scores = torch.tensor([0.2, 0.9, 0.5, 0.5])
    hits = torch.tensor([True, True, False, True])
    precision, recall, thresholds = precision_recall_curve(scores, hits, 4)
    assert thresholds.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert precision.tolist() == pytest.approx([1, 2 / 3, 3 / 4])
    assert recall.tolist() == pytest.approx([1 / 4, 2 / 4, 3 / 4])


def test_scores_are_equal_only_where_they_are_to_the_last_digit():
    # Single precision cannot tell the first three apart; 0 and -0 are one threshold.
    scores = torch.tensor([0.5, 0.5 + 1e-12, 0.5 - 1e-12, 0.0, -0.0], dtype=torch.float64)
    precision, recall, thresholds = precision_recall_curve(scores, torch.tensor([False, True, False, False, True]), 2)
    assert thresholds.tolist() == [0.5 + 1e-12, 0.5, 0.5 - 1e-12, 0]
    assert precision.tolist() == [1, 1 / 2, 1 / 3, 2 / 5]
    assert recall.tolist() == [1 / 2, 1 / 2, 1 / 2, 1]


def test_what_decoding_returns_can_be_passed_on():
    xy = torch.tensor([[5.0, 5.0], [20.0, 20.0], [NAN, NAN]])
    scores = torch.tensor([0.9, 0.8, 0.0])
    metric = KeypointAveragePrecision([2.0])
    metric.update([(xy, scores)], [torch.tensor([[5.0, 6.0], [NAN, NAN], [30.0, 30.0]])])
    assert metric.compute() == pytest.approx({2.0: 0.5})


def test_distances_are_inclusive_and_kept_as_given():
    metric = KeypointAveragePrecision([2, 4.5])
    metric.update([(torch.tensor([[0.0, 0.0]]), torch.tensor([0.4]))], [torch.tensor([[2.0, 0.0]])])
    assert metric.compute() == {2.0: 1.0, 4.5: 1.0}
    metric.reset()
    metric.update([(torch.tensor([[0.0, 0.0]]), torch.tensor([0.4]))], [torch.tensor([[2.0001, 0.0]])])
    assert metric.compute() == {2.0: 0.0, 4.5: 1.0}


def test_differing_numbers_are_refused():
    metric = KeypointAveragePrecision([2])
    with pytest.raises(ValueError, match="2 images and targets for 1"):
        metric.update([(torch.zeros(0, 2), torch.zeros(0))] * 2, [torch.zeros(0, 2)])
    with pytest.raises(ValueError, match="image 1 has 3 positions and 2 scores"):
        metric.update(
            [(torch.zeros(0, 2), torch.zeros(0)), (torch.zeros(3, 2), torch.zeros(2))], [torch.zeros(0, 2)] * 2
        )


def test_positions_that_are_not_x_and_y_are_refused_however_many_numbers_they_are():
    metric = KeypointAveragePrecision([2])
    with pytest.raises(ValueError, match=r"got positions of shape \(1, 4\), expected \(N, 2\)"):
        metric.update([(torch.zeros(1, 4), torch.zeros(2))], [torch.zeros(0, 2)])
    points = [(torch.zeros(1, 2), torch.zeros(1)), (torch.zeros(3, 3), torch.zeros(3))]
    with pytest.raises(ValueError, match=r"got positions of different widths, expected \(N, 2\)"):
        metric.update(points, [torch.zeros(0, 2)] * 2)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(torch.zeros(2, 2), torch.zeros(2)), (torch.zeros(3, 2, device="meta"), torch.zeros(3))], "on device meta"),
        ([(torch.zeros(2, 2), torch.zeros(2)), (torch.zeros(3, 2), torch.zeros(3, 1))], "number of dimensions"),
        ([(torch.zeros(2, 2), torch.zeros(2, 1)), (torch.zeros(1, 2), torch.zeros(1, 2))], "Expected size 1"),
    ],
)
def test_what_torch_says_of_tensors_whose_positions_are_of_one_width_stays(points, message):
    with pytest.raises(RuntimeError, match=message):
        KeypointAveragePrecision([2]).update(points, [torch.zeros(0, 2)] * 2)
