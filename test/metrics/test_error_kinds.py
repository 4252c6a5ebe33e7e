"""The errors by kind, against cases worked out by hand and against a reference that is written with plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matching import match

from keypoint_detection.metrics import error_kinds
from keypoint_detection.metrics.error_kinds import (
    BACKGROUND,
    DUPLICATE,
    ERROR_KINDS,
    IMPRECISE,
    NO_DETECTION,
    TRUE,
    WRONG_CHANNEL,
    classify_detections,
    error_taxonomy,
)

NONE = (math.nan, math.nan)


def tensors(images):
    """Images of channels of (detections [(x, y, score)], truths [(x, y)]) -> xy, scores, truths, labelled."""
    n = max(len(d) for image in images for d, _ in image)
    k = max(len(t) for image in images for _, t in image)
    detections = [[[*d, *[(*NONE, 0.0)] * (n - len(d))] for d, _ in image] for image in images]
    truths = [[[*t, *[NONE] * (k - len(t))] for _, t in image] for image in images]
    shape = len(images), len(images[0])
    detections = torch.tensor(detections, dtype=torch.float64).reshape(*shape, n, 3)
    truths = torch.tensor(truths, dtype=torch.float64).reshape(*shape, k, 2)
    return detections[..., :2], detections[..., 2], truths, torch.ones(shape, dtype=torch.bool)


def kinds_of(*channels, distance=4.0):
    """Kinds and missed flags of a single image, cut to what each channel holds."""
    result = classify_detections(*tensors([channels]), distance)
    kinds = [result.kinds[0, c, : len(d)].tolist() for c, (d, _) in enumerate(channels)]
    missed = [result.missed[0, c, : len(t)].tolist() for c, (_, t) in enumerate(channels)]
    return kinds, missed


def test_detection_at_the_distance_is_true_and_the_other_truth_is_missed():
    assert kinds_of(([(10, 14, 0.9)], [(10, 10), (50, 50)])) == ([[TRUE]], [[False, True]])


def test_second_detection_of_a_keypoint_is_a_duplicate():
    assert kinds_of(([(11, 10, 0.5), (12, 10, 0.9)], [(10, 10)])) == ([[DUPLICATE, TRUE]], [[False]])


def test_farther_second_detection_is_a_duplicate_up_to_twice_the_distance():
    found = [(10, 10)]
    assert kinds_of(([(10, 10, 0.9), (18, 10, 0.5)], found)) == ([[TRUE, DUPLICATE]], [[False]])
    assert kinds_of(([(10, 10, 0.9), (18.01, 10, 0.5)], found)) == ([[TRUE, BACKGROUND]], [[False]])


def test_imprecise_detection_claims_its_keypoint_which_is_no_miss():
    assert kinds_of(([(16, 10, 0.9)], [(10, 10)])) == ([[IMPRECISE]], [[False]])
    assert kinds_of(([(18.5, 10, 0.9)], [(10, 10)])) == ([[BACKGROUND]], [[True]])


def test_of_two_imprecise_detections_the_lower_score_is_a_duplicate():
    assert kinds_of(([(16, 10, 0.3), (4, 10, 0.4)], [(10, 10)])) == ([[DUPLICATE, IMPRECISE]], [[False]])


def test_wrong_channel_claims_the_keypoint_of_the_other_channel():
    kinds, missed = kinds_of(([(10, 10, 0.9)], []), ([], [(11, 10), (90, 90)]))
    assert kinds == [[WRONG_CHANNEL], []]
    assert missed == [[], [False, True]]


def test_wrong_channel_even_where_the_keypoint_is_found_already():
    kinds, missed = kinds_of(([(10, 10, 0.9)], []), ([(11, 10, 0.2)], [(11, 10)]))
    assert kinds == [[WRONG_CHANNEL], [TRUE]]
    assert missed == [[], [False]]


def test_own_channel_comes_before_another():
    kinds, _ = kinds_of(([(16, 10, 0.9)], [(10, 10)]), ([], [(16, 10)]))
    assert kinds == [[IMPRECISE], []]


def test_unlabelled_channels_do_not_count():
    xy, scores, truths, labelled = tensors([[([(10, 10, 0.9)], [(10, 10)]), ([(10, 10, 0.8)], [])]])
    labelled[0, 0] = False
    result = classify_detections(xy, scores, truths, labelled, 4.0)
    assert result.kinds[0, :, 0].tolist() == [NO_DETECTION, BACKGROUND]
    assert not result.missed.any()


def test_channels_that_are_not_labelled_change_no_number():
    image = ([(0, 0, 0.9), (200, 0, 0.8)], [(0, 0), (50, 0)]), ([(9, 9, 0.7)], [(9, 9)])
    alone = error_taxonomy(*tensors([image]), 2.0, torch.zeros(2))
    xy, scores, truths, labelled = tensors([image, image])
    labelled[1] = False
    beside = error_taxonomy(xy, scores, truths, labelled, 2.0, torch.zeros(2))
    assert alone.average_precision.tolist() == [0.5, 1.0]
    for found, expected in zip(beside, alone, strict=True):
        assert torch.equal(found, expected)


def test_no_detections_and_no_truths():
    nothing = torch.zeros(2, 3, 0, 2), torch.zeros(2, 3, 0), torch.zeros(2, 3, 0, 2), torch.ones(2, 3, dtype=torch.bool)
    result = error_taxonomy(*nothing, 4.0, torch.full((3,), 0.5))
    assert result.counts.tolist() == [[0] * 3] * 5
    assert result.gains.isnan().all()


def test_gains_of_a_case_worked_out_by_hand():
    # Channel 0: 4 truths. In descending score: true, background, true, imprecise; the fourth truth is missed.
    first = [(10, 10, 0.9), (200, 200, 0.8), (50, 10, 0.7), (96, 10, 0.6)], [(10, 10), (50, 10), (90, 10), (130, 10)]
    # Channel 1: one detection, at the third truth's side of channel 2. Channel 2: found twice, and one truth unfound.
    second = [(300, 10, 0.5)], [(400, 400)]
    third = [(350, 10, 0.9), (351, 10, 0.8)], [(350, 10), (300, 10)]
    result = error_taxonomy(*tensors([[first, second, third]]), 4.0, torch.tensor([0.0, 0.0, 0.85]))
    assert dict(zip(ERROR_KINDS, result.counts.tolist(), strict=True)) == {
        "miss": [1, 1, 0],
        "duplicate": [0, 0, 0],  # the duplicate's score, 0.8, is below its channel's threshold
        "imprecise": [1, 0, 0],
        "wrong_channel": [0, 1, 0],
        "background": [1, 0, 0],
    }
    # Channel 0: recall 1/4 at precision 1, 2/4 at 2/3. Channel 2: recall 1/2 at precision 1.
    assert result.average_precision.tolist() == pytest.approx([1 / 4 + 1 / 4 * 2 / 3, 0, 1 / 2])
    gains = dict(zip(ERROR_KINDS, (result.gains + result.average_precision).tolist(), strict=True))
    # The hits over the precisions 1, 2/3 (and 3/4 once the imprecise one is true, which lifts the envelope to 3/4).
    assert gains["miss"] == pytest.approx([1 / 3 + 1 / 3 * 2 / 3, 1, 1 / 2])
    assert gains["imprecise"] == pytest.approx([1 / 4 + 2 / 4 * 3 / 4, 0, 1 / 2])
    assert gains["background"] == pytest.approx([1 / 4 + 1 / 4, 0, 1 / 2])
    assert gains["duplicate"] == pytest.approx([1 / 4 + 1 / 4 * 2 / 3, 0, 1 / 2])
    # The detection at 0.5 moves to channel 2, behind one false detection there: precision 2/3.
    assert gains["wrong_channel"] == pytest.approx([1 / 4 + 1 / 4 * 2 / 3, 0, 1 / 2 + 1 / 2 * 2 / 3])


def test_every_miss_of_an_image_is_mended():
    image = [(0, 0, 0.9), (200, 0, 0.95)], [(0, 0), (50, 0), (100, 0)]
    result = error_taxonomy(*tensors([[image]]), 2.0, torch.tensor([0.5]))
    assert result.counts[:, 0].tolist() == [2, 0, 0, 0, 1]
    assert result.average_precision.tolist() == pytest.approx([1 / 3 * 1 / 2])
    assert result.gains[0].tolist() == pytest.approx([1 / 2 - 1 / 6])  # one truth is left, behind a false detection


def test_detections_at_the_score_threshold_count():
    image = [(0, 0, 0.5), (200, 0, 0.5)], [(0, 0)]
    result = error_taxonomy(*tensors([[image]]), 2.0, torch.tensor([0.5]))
    assert result.counts[:, 0].tolist() == [0, 0, 0, 0, 1]


def reference(image, distance):
    """The rules of the module's docstring for one image, with plain loops: kinds and missed truths."""
    dist = lambda a, b: math.hypot(a[0] - b[0], a[1] - b[1])  # noqa: E731
    kinds = [[None] * len(d) for d, _ in image]
    gone = [[False] * len(t) for _, t in image]
    ranked = [(-d[2], c, n) for c, (detections, _) in enumerate(image) for n, d in enumerate(detections)]
    ranked.sort()

    def sweep(limit, kind, same):
        for _, c, n in ranked:
            if kinds[c][n] is not None:
                continue
            point = image[c][0][n]
            near = [
                (dist(point, t), b, k)
                for b, (_, truths) in enumerate(image)
                for k, t in enumerate(truths)
                if (b == c) == same and not gone[b][k] and dist(point, t) <= limit
            ]
            if near:
                _, b, k = min(near)
                gone[b][k], kinds[c][n] = True, kind

    def rest(limit, kind, same):
        for _, c, n in ranked:
            point = image[c][0][n]
            truths = [t for b, (_, others) in enumerate(image) for t in others if (b == c) == same]
            if kinds[c][n] is None and any(dist(point, t) <= limit for t in truths):
                kinds[c][n] = kind

    sweep(distance, TRUE, same=True)
    rest(distance, DUPLICATE, same=True)
    sweep(2 * distance, IMPRECISE, same=True)
    rest(2 * distance, DUPLICATE, same=True)
    sweep(distance, WRONG_CHANNEL, same=False)
    rest(distance, WRONG_CHANNEL, same=False)
    return [[BACKGROUND if kind is None else kind for kind in row] for row in kinds], [
        [not g for g in row] for row in gone
    ]


# Whole pixels and tenths make ties of scores and of distances, which have to be broken in the same way.
pixel, score = st.integers(0, 20), st.integers(1, 10).map(lambda i: i / 10)
channel = st.tuples(st.lists(st.tuples(pixel, pixel, score), max_size=6), st.lists(st.tuples(pixel, pixel), max_size=4))
image_sets = st.integers(1, 3).flatmap(
    lambda c: st.lists(st.lists(channel, min_size=c, max_size=c), min_size=1, max_size=3)
)


@settings(max_examples=150)
@given(image_sets, st.sampled_from([1.0, 2.5, 5.0]))
def test_agrees_with_plain_loops_and_with_the_matching_of_the_metric(images, distance):
    xy, scores, truths, labelled = tensors(images)
    result = classify_detections(xy, scores, truths, labelled, distance)
    for i, image in enumerate(images):
        kinds, missed = reference(image, distance)
        for c, (detections, true) in enumerate(image):
            assert result.kinds[i, c].tolist() == kinds[c] + [NO_DETECTION] * (xy.shape[2] - len(detections))
            assert result.missed[i, c].tolist() == missed[c] + [False] * (truths.shape[2] - len(true))
    matched = match(xy, scores.masked_fill(xy[..., 0].isnan(), -torch.inf), truths, torch.tensor([distance]))
    assert torch.equal(result.kinds == TRUE, ~matched[..., 0].isnan())


def test_an_image_with_very_many_keypoints_makes_no_room_in_the_others_and_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return (torch.rand(*shape, generator=generator, dtype=torch.float64) * 50).round()

    sizes = [(6, 4)] * 40 + [(150, 4), (6, 200), (100, 90), (0, 3), (5, 0)]
    xy, truths = (torch.full((45, 3, n, 2), math.nan, dtype=torch.float64) for n in (150, 200))
    for index, (n, k) in enumerate(sizes):
        xy[index, :, :n], truths[index, :, :k] = random(3, n, 2), random(3, k, 2)
    xy[torch.rand(45, 3, 150, generator=generator) < 0.1] = math.nan  # anywhere, not only at the end
    scores, labelled = random(45, 3, 150), torch.rand(45, 3, generator=generator) < 0.9
    hidden = ~labelled[..., None, None]
    whole = error_kinds._classify(xy.masked_fill(hidden, math.nan), scores, truths.masked_fill(hidden, math.nan), 2.5)
    assert {kind.item() for kind in whole.kinds.unique()} == {*range(-1, 5)}
    cells, classify = [], error_kinds._classify

    def count_cells(xy, scores, truths, distance):
        cells.append(scores.numel() + truths[..., 0].numel())
        return classify(xy, scores, truths, distance)

    monkeypatch.setattr(error_kinds, "_classify", count_cells)
    for found, expected in zip(classify_detections(xy, scores, truths, labelled, 2.5), whole, strict=True):
        assert torch.equal(found, expected)
    assert sum(cells) < 2 * 3 * sum(map(sum, sizes))  # 16 times as many with all images side by side


@settings(max_examples=60)
@given(image_sets)
def test_every_gain_lies_within_what_is_missing(images):
    points = tensors(images)
    result = error_taxonomy(*points, 2.5, torch.zeros(points[1].shape[1]))
    defined = ~result.average_precision.isnan()
    gains = result.gains[:, defined].numpy()
    base = result.average_precision[defined].numpy()
    assert (base + gains <= 1 + 1e-9).all()
    # Mending misses, duplicates and background only takes errors away, so it never costs anything.
    assert (gains[[0, 1, 4]] >= -1e-9).all()
    found = np.array([(classify_detections(*points, 2.5).kinds == TRUE).sum()])
    assert int(result.counts[1:].sum()) + int(found[0]) == int((~points[0].isnan().any(-1)).sum())
