"""Values drawn from the distributions of a sweep file, by wandb's names."""

import math
import statistics

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from keypoint_detection.errors import InputError
from keypoint_detection.sweep.parameters import DISTRIBUTIONS, grid_points, read_parameter


def draw(entry, count=200):
    """Values of a parameter that a random search draws."""
    parameter = read_parameter("x", entry)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [parameter.draw(study.ask()) for _ in range(count)]


# distribution, its entry, what each value has to be, and the range that the median has to be in
CASES = [
    ("constant", {"value": 3}, lambda x: x == 3, (3, 3)),
    ("categorical", {"values": [1, 2, 3]}, lambda x: x in (1, 2, 3), (2, 2)),
    ("categorical_w_probabilities", {"values": [5, 7], "probabilities": [0.2, 0.8]}, lambda x: x in (5, 7), (7, 7)),
    ("int_uniform", {"min": 2, "max": 12}, lambda x: x in range(2, 13), (5, 9)),
    ("uniform", {"min": 1, "max": 3}, lambda x: 1 <= x <= 3, (1.8, 2.2)),
    ("log_uniform_values", {"min": 1e-4, "max": 1}, lambda x: 1e-4 <= x <= 1, (4e-3, 2.5e-2)),
    ("log_uniform", {"min": -4, "max": 0}, lambda x: math.exp(-4) <= x <= 1, (0.09, 0.2)),
    ("inv_log_uniform", {"min": 0, "max": 4}, lambda x: math.exp(-4) <= x <= 1, (0.09, 0.2)),
    ("inv_log_uniform_values", {"min": 1e-4, "max": 1}, lambda x: 1e-4 <= x <= 1, (4e-3, 2.5e-2)),
    ("normal", {"mu": 5, "sigma": 1}, lambda x: abs(x - 5) < 5, (4.8, 5.2)),
    ("log_normal", {"mu": 0, "sigma": 1}, lambda x: x > 0, (0.8, 1.25)),
    ("q_uniform", {"min": 0, "max": 40, "q": 8}, lambda x: x in (0, 8, 16, 24, 32, 40), (16, 24)),
    ("q_log_uniform", {"min": 0, "max": 4}, lambda x: x in range(1, 56), (6, 9)),
    ("q_log_uniform_values", {"min": 1, "max": 100, "q": 5}, lambda x: x % 5 == 0 and x <= 100, (5, 15)),
    ("q_normal", {"mu": 5, "sigma": 1, "q": 0.5}, lambda x: x * 2 == int(x * 2), (5, 5)),
    ("q_log_normal", {"mu": 2, "sigma": 1, "q": 2}, lambda x: x % 2 == 0 and x >= 0, (6, 8)),
]


def test_every_distribution_has_a_case():
    assert {name for name, *_ in CASES} == set(DISTRIBUTIONS)


@pytest.mark.parametrize(("distribution", "entry", "fits", "median"), CASES, ids=[case[0] for case in CASES])
def test_values_lie_where_the_distribution_has_them(distribution, entry, fits, median):
    values = draw({"distribution": distribution, **entry})
    assert all(fits(value) for value in values), values
    assert median[0] <= statistics.median(values) <= median[1]
    assert len(set(values)) > 1 or distribution == "constant"


@pytest.mark.parametrize(
    ("entry", "kind"),
    [({"value": "a"}, str), ({"min": 1, "max": 3}, int), ({"min": 1.0, "max": 3}, float), ({"values": ["a"]}, str)],
)
def test_without_a_name_the_distribution_is_the_one_that_wandb_takes(entry, kind):
    assert all(type(value) is kind for value in draw(entry, count=20))


@given(st.floats(0.001, 10), st.floats(0, 100), st.floats(0.1, 100))
def test_quantised_values_are_the_nearest_multiples(step, low, span):
    parameter = read_parameter("x", {"distribution": "q_uniform", "min": low, "max": low + span, "q": step})
    for bound, value in zip((parameter.low, parameter.high), parameter.extremes(), strict=True):
        assert abs(value - bound) <= step / 2 * (1 + 1e-6)
        assert value / step == pytest.approx(round(value / step), abs=1e-6)


@pytest.mark.parametrize(
    ("entry", "texts"), [({"max": 3}, "0 1 2 3"), ({"max": 0.5, "q": 0.1}, "0.0 0.1 0.2 0.3 0.4 0.5")]
)
def test_quantised_values_are_written_as_the_multiples_are_by_hand(entry, texts):
    values = draw({"distribution": "q_uniform", "min": 0, **entry})  # in steps of 1, where none is given
    assert {repr(value) for value in values} == set(texts.split())


def test_lists_and_booleans_can_be_chosen_between():
    values = draw({"values": [[1, 2], [3], True, None, 1e-3]})
    for expected in ([1, 2], [3], True, None, 1e-3):
        assert expected in values


def test_choices_that_are_equal_in_python_stay_apart():
    drawn = draw({"values": [True, 1, 0, False]})
    assert {(type(value), value) for value in drawn} == {(bool, True), (int, 1), (int, 0), (bool, False)}


def test_weighted_choices_are_choices():
    parameter = read_parameter("x", {"values": ["a", "b", "c"], "probabilities": [0.9, 0, 0.1]})
    assert parameter.extremes() == parameter.grid() == ["a", "b", "c"]
    assert set(draw({"values": ["a", "b", "c"], "probabilities": [0.9, 0, 0.1]})) == {"a", "c"}


@pytest.mark.parametrize("distribution", ["q_log_uniform_values", "q_log_uniform", "q_log_normal"])
def test_quantised_values_of_a_logarithm_are_never_0(distribution):
    bounds = {"min": -7, "max": 0} if distribution == "q_log_uniform" else {"min": 1e-3, "max": 1}
    numbers = {"mu": -3, "sigma": 1} if distribution == "q_log_normal" else bounds
    assert min(draw({"distribution": distribution, "q": 0.1, **numbers})) == 0.1


def test_a_date_is_the_text_that_stands_in_the_file():
    assert read_parameter("x", yaml.safe_load("values: [2026-01-31, b]")).choices == ("2026-01-31", "b")


def test_a_number_that_yaml_takes_for_text_is_one():
    assert read_parameter("x", {"values": ["1e-4", "3E5", "e4"]}).choices == (1e-4, 3e5, "e4")
    assert read_parameter("x", {"min": "1e-4", "max": 1.0}).low == 1e-4
    assert read_parameter("x", {"values": [1, 2], "probabilities": ["1e-1", 0.9]}).weights == (0.1, 0.9)


@pytest.mark.parametrize("bound", [2, 0.5])
def test_bounds_that_are_equal_leave_one_value(bound):
    parameter = read_parameter("x", {"min": bound, "max": bound})
    assert not parameter.varies
    assert parameter.extremes() == [bound]
    assert set(draw({"min": bound, "max": bound}, count=3)) == {bound}


def test_a_grid_is_every_combination_with_the_last_parameter_changing_fastest():
    entries = {"a": {"values": ["x", "y"]}, "b": {"value": 0}, "c": {"min": 1, "max": 2}}
    points = grid_points([read_parameter(name, entry) for name, entry in entries.items()])
    assert [tuple(point.values()) for point in points] == [("x", 0, 1), ("x", 0, 2), ("y", 0, 1), ("y", 0, 2)]


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"min": 3, "max": 1}, "min is 3 and max is 1"),
        ({"min": 3}, "expected value, values, or min and max"),
        (7, "expected value, values, or min and max, got 7"),
        ({"parameters": {"y": {"value": 1}}}, "expected value, values, or min and max"),
        ({"values": []}, "at least one"),
        ({"values": "1 2"}, "expected a list"),
        ({"values": [1, 2], "probabilities": [0.5]}, "2 numbers, one per value"),
        ({"values": [1, 2], "probabilities": [0.5, 0.25, 0.25]}, "2 numbers, one per value"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "sum to 1"),
        ({"values": [1, 2], "probabilities": ["a", "b"]}, "2 numbers, one per value"),
        ({"values": [1, 2], "probabilities": [-1, 2]}, "2 numbers, one per value"),
        ({"values": [1, 2], "probabilities": [float("nan"), 1]}, "2 numbers, one per value"),
        ({"distribution": "log_uniform", "min": 1, "max": 1000}, "log_uniform: expected natural logarithms"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min is 0, expected a number above 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "q is 0"),
        ({"distribution": "uniform", "min": "low", "max": 1}, "min is 'low', expected a number"),
        ({"distribution": "uniform", "min": True, "max": 1}, "min is True, expected a number"),
        ({"distribution": "uniform", "min": 0, "max": math.inf}, "max is inf, expected a number"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 1}, "whole numbers"),
        ({"distribution": "int_uniform", "min": 0, "max": 1.5}, "whole numbers"),
        ({"distribution": "normal", "mu": 0, "sigma": 0}, "sigma is 0"),
        ({"distribution": "normal", "mu": 0}, "normal needs mu and sigma"),
        ({"distribution": "beta", "a": 1, "b": 2}, "distribution 'beta': expected one of constant"),
        ({"distribution": 5, "min": 0, "max": 1}, "distribution 5: expected one of constant"),
        ({"distribution": {"uniform": None}, "min": 0, "max": 1}, "expected one of constant"),
        ({"min": 0, "max": 1, 5: 3, "step": 2}, "distribution int_uniform, expected min, max"),
        (
            {"distribution": "uniform", "min": 0, "max": 1, "q": 2},
            "q: unknown entry of distribution uniform, expected min",
        ),
    ],
)
def test_a_wrong_entry_is_one_line_that_names_the_parameter(entry, named):
    with pytest.raises(InputError) as error:
        read_parameter("x", entry)
    assert str(error.value).startswith("parameters.x: ")
    assert named in str(error.value)


def test_a_grid_over_a_continuum_is_bad_input():
    with pytest.raises(InputError, match=r"parameters\.x: method grid: expected value, values"):
        grid_points([read_parameter("x", {"min": 0.0, "max": 1.0})])


def test_numbers_with_an_exponent_are_numbers_however_they_are_written():
    entry = yaml.safe_load("{values: [1.5e3, 1e3, 2.e-1, .5E+1, -1e0, 1e, e3, 1.2.3e1]}")
    assert read_parameter("x", entry).choices == (1500.0, 1000.0, 0.2, 5.0, -1.0, "1e", "e3", "1.2.3e1")
    bounds = read_parameter("x", yaml.safe_load("{min: 1.5e-4, max: 2.5e-1}"))
    assert (bounds.low, bounds.high) == (0.00015, 0.25)
