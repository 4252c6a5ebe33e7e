"""The order of a sweep's runs in its table."""

import pytest

from keypoint_detection.sweep.results import Run, ranked


@pytest.mark.parametrize(("maximize", "numbers"), [(True, [2, 1, 5, 0, 3]), (False, [1, 5, 2, 3, 0])])
def test_complete_runs_come_first_then_stopped_ones_then_all_others(maximize, numbers):
    states = [
        *[("pruned", 0.9), ("complete", 0.5), ("complete", 0.7), ("pruned", 0.8)],
        *[("running", 0.99), ("complete", 0.5), ("failed", None), ("running", 0.01)],
    ]
    runs = [Run(number, state, value, {}, 1, 1.0, "") for number, (state, value) in enumerate(states)]
    order = [run.number for run in ranked(runs[::-1], maximize)]
    assert order[:5] == numbers
    assert set(order[5:]) == {4, 6, 7}
