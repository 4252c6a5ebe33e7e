"""Which choice a number that Optuna draws stands for."""

from types import SimpleNamespace

import pytest

from keypoint_detection.sweep.parameters import read_parameter


@pytest.mark.parametrize(
    ("drawn", "choice"), [(0.0, "a"), (0.19, "a"), (0.2, "b"), (0.69, "b"), (0.7, "c"), (1.0, "c")]
)
def test_a_weighted_choice_takes_its_share_of_0_to_1(drawn, choice):
    parameter = read_parameter("x", {"values": ["a", "b", "c"], "probabilities": [0.2, 0.5, 0.3]})
    assert parameter.draw(SimpleNamespace(suggest_float=lambda name, low, high: low + drawn * (high - low))) == choice
