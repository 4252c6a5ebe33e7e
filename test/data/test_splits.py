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
