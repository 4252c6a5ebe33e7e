"""Groups are divided so that little is padded: each is in one division, and none makes others take its memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypoint_detection.metrics import groups as groups_module
from keypoint_detection.metrics.groups import of_similar_size

numbers = st.integers(0, 30) | st.integers(0, 5000)


@given(st.lists(st.tuples(numbers, numbers), max_size=60))
def test_each_group_is_in_one_division_with_others_of_about_its_size(counts):
    counts = np.array(counts, dtype=np.int64).reshape(-1, 2)
    divisions = list(of_similar_size(counts))
    assert sorted(np.concatenate([[], *divisions])) == list(range(len(counts)))
    for division in divisions:
        most, least = counts[division].max(axis=0), counts[division].min(axis=0)
        assert ((most < 64) | (most < 2 * least)).all()


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(5, [8192, 8192, 3616]), (63, [8192, 8192, 3616]), (64, [8192, 8192, 3616]), (300, [2048] * 9 + [1568])],
)
def test_a_division_holds_at_most_so_many_groups_and_rows(rows, sizes):
    counts = np.full((20_000, 2), (5, rows))
    assert [len(division) for division in of_similar_size(counts)] == sizes


def test_a_group_that_is_too_large_stands_alone(monkeypatch):
    monkeypatch.setattr(groups_module, "_ROWS_AT_ONCE", 100)
    assert [division.tolist() for division in of_similar_size(np.array([[500], [400], [1]]))] == [[2], [1], [0]]


def test_a_division_is_in_ascending_order_of_the_last_kind_of_rows():
    (division,) = of_similar_size(np.array([[1, 9], [3, 2], [2, 5]]))
    assert division.tolist() == [1, 2, 0]
