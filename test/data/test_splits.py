import json
import logging

import numpy as np
import pytest
from data_sets import write_data_set
from hypothesis import given
from hypothesis import strategies as st

from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.splits import (
    check_same_images,
    describe_split,
    random_split,
    recorded_split,
    warn_of_changed_labels,
)
from keypoint_detection.errors import InputError


class Images:
    """As many images as a split needs to know of."""

    source = "file.json"

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n


@given(st.integers(2, 200), st.floats(0.001, 0.999), st.integers(0, 2**32))
def test_random_split_leaves_images_on_both_sides(n, ratio, seed):
    train, validation = random_split(Images(n), ratio, seed)
    assert sorted([*train, *validation]) == list(range(n))
    assert min(len(train), len(validation)) >= 1
    assert abs(len(validation) - min(max(n * ratio, 1), n - 1)) <= 0.5
    again = random_split(Images(n), ratio, seed)
    assert all(np.array_equal(a, b) for a, b in zip((train, validation), again, strict=True))


def is_among(n, positions):
    return np.isin(np.arange(n), positions)


@given(st.integers(2, 200), st.floats(0.001, 0.999), st.integers(0, 2**32), st.data())
def test_images_that_were_trained_on_are_trained_on_again_if_enough_are_left_to_validate(n, ratio, seed, data):
    usual = random_split(Images(n), ratio, seed)
    states = np.array(data.draw(st.lists(st.sampled_from(["trained", "new", "unknown"]), min_size=n, max_size=n)))
    train, validation = random_split(Images(n), ratio, seed, (states == "trained", states == "new"))
    assert sorted([*train, *validation]) == list(range(n))
    assert list(validation) == sorted(validation)
    if not (states[usual[1]] == "trained").any():
        assert [*train, *validation] == [*usual[0], *usual[1]]
        return
    least, new = min(5, len(usual[1])), (states == "new").sum()
    if new < 2 * least:  # more of the new images would be lost to training than are left for it
        assert list(validation) == list(usual[1])
    else:
        assert (states[validation] == "new").all()
        assert least <= len(validation) <= len(usual[1])


@pytest.mark.parametrize(
    ("n", "new", "known", "count"),
    [
        (200, 100, 200, 10),  # a tenth of the new ones
        (200, 20, 200, 5),
        (200, 9, 200, None),
        (40, 8, 40, 4),  # as many as usual, which are fewer than five
        (40, 7, 40, None),
        (200, 20, 40, 10),  # of every fifth image it is known: a tenth of an estimated 100 new ones
        (1000, 20, 40, 20),  # all that are known to be new, of an estimated 500
    ],
)
def test_the_share_is_that_of_the_images_that_were_not_trained_on(n, new, known, count):
    order = np.random.default_rng(1).permutation(n)
    among = is_among(n, order[new:known]), is_among(n, order[:new])
    for seed in range(20):
        usual = random_split(Images(n), 0.1, seed)[1]
        validation = random_split(Images(n), 0.1, seed, among)[1]
        if among[0][usual].any():
            assert len(validation) == (len(usual) if count is None else count)
            assert (validation.tolist() == usual.tolist()) is (count is None)
    if count == 10:
        assert len({tuple(random_split(Images(n), 0.1, seed, among)[1]) for seed in range(9)}) > 5


def test_the_share_is_rounded_to_whole_images():
    assert len(random_split(Images(7), 0.25, 0)[1]) == 2


def test_another_seed_is_another_split():
    splits = {tuple(random_split(Images(100), 0.2, seed)[1]) for seed in range(5)}
    assert len(splits) == 5


@pytest.mark.parametrize(("n", "ratio", "message"), [(1, 0.5, "1 image cannot"), (9, 0, "ratio"), (9, 1.0, "ratio")])
def test_impossible_split_is_named(n, ratio, message):
    with pytest.raises(InputError, match=message):
        random_split(Images(n), ratio, 0)


@pytest.fixture
def annotations(tmp_path):
    path = write_data_set(tmp_path, [(8, 8)] * 6, [{"a": [[1, 1]]}] * 6)
    return read_annotations(path, tmp_path)


def record(annotations, train=(3, 0, 5), validation=(1, 2, 4)):
    parts = {"train": annotations.subset(train), "validation": annotations.subset(validation)}
    return json.loads(json.dumps(describe_split(7, {"train": annotations}, parts)))


def test_a_recorded_split_is_found_again(annotations):
    split = record(annotations)
    assert split["seed"] == 7
    assert split["train"] == ["003.png", "000.png", "005.png"]
    train, validation = recorded_split(annotations, split)
    assert train.tolist() == [3, 0, 5]
    assert validation.tolist() == [1, 2, 4]


def test_a_part_that_has_a_file_holds_the_same_images_in_the_same_order(annotations):
    names = [f"00{index}.png" for index in range(6)]
    check_same_images(annotations, {"train": names}, "train")
    check_same_images(annotations, {"train": names}, "test")  # of which the record says nothing
    with pytest.raises(InputError, match="split: the images of 'train' are not those of"):
        check_same_images(annotations, {"train": names[::-1]}, "train")


def test_changed_labels_are_noticed(annotations, tmp_path, caplog):
    path = write_data_set(tmp_path, [(8, 8)] * 6, [{"a": [[2, 1]]}] * 6)
    with caplog.at_level(logging.WARNING):
        for labels, count in ((annotations, 0), (read_annotations(path, tmp_path), 1)):
            warn_of_changed_labels(labels.source, record(annotations), labels.fingerprint())
            assert caplog.text.count("labels have changed") == count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ["003.png", "other.png"]}, "other.png.*expected the file that the split was made from"),
        ({"train": ["003.png"]}, r"does not list 000\.png of \S+ \(2 images missing\), expected the file"),
        ({"validation": ["000.png", "001.png", "002.png", "004.png"]}, "twice"),
        ({"validation": []}, "expected a list of image names under 'validation'"),
        ({"train": "003.png"}, "expected a list"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(annotations, change, message):
    with pytest.raises(InputError, match=message):
        recorded_split(annotations, record(annotations) | change)
