import warnings

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from keypoint_detection.sweep.parameters import read_parameter
from keypoint_detection.sweep.picture import draw_parallel_coordinates, number_axis


@pytest.mark.parametrize(
    ("values", "options", "texts"),
    [
        ([0.07, 0.93], {}, ["0.2", "0.4", "0.6", "0.8"]),
        ([8, 11], {"whole": True}, ["8", "9", "10", "11"]),
        ([0.00018, 0.0092], {"log": True}, ["0.0002", "0.0005", "0.001", "0.002", "0.005"]),
        ([0.0031, 0.0035], {"log": True}, [f"{number / 1e5:.6g}" for number in range(310, 351, 5)]),
        ([0.5, 0.5], {}, ["0.5"]),
    ],
)
def test_ticks_of_numbers_are_round_and_where_a_run_of_that_value_is(values, options, texts):
    axis = number_axis("title", values, **options)
    assert [text for _, text in axis.ticks] == texts
    where = number_axis("title", [*values, *map(float, texts)], **options).positions[len(values) :]
    assert np.allclose([position for position, _ in axis.ticks], where)
    assert ((axis.positions >= 0) & (axis.positions <= 1)).all()


def test_a_sweep_without_a_value_yet_has_a_picture_without_lines(tmp_path):
    rate = read_parameter("rate", {"distribution": "log_uniform_values", "min": 1e-4, "max": 1})
    nothing = {"values": [], "parameters": [], "complete": []}
    draw_parallel_coordinates(tmp_path / "empty.png", **nothing, axes=[rate], metric="score", maximize=True)
    with Image.open(tmp_path / "empty.png") as picture:
        assert min(picture.size) > 100


def test_names_and_values_in_the_picture_of_a_sweep_are_no_formulas(tmp_path):
    channels = read_parameter("keypoint_channels", {"values": ["$\\none$", "b"]})
    runs = {"values": [0.1, 0.2], "parameters": [{channels.name: name} for name in ("$\\none$", "b")]}
    metric = "validation/loss/$\\none$"
    runs |= {"complete": [True, True], "axes": [channels], "metric": metric, "maximize": False}
    draw_parallel_coordinates(tmp_path / "sweep.png", **runs)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert min(picture.size) > 100


def test_names_in_letters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path):
    channels = read_parameter("keypoint_channels", {"values": ["前足", "尾"]})
    runs = {"values": [0.1, 0.2], "parameters": [{channels.name: name} for name in ("前足", "尾")]}
    runs |= {"complete": [True, True], "axes": [channels], "metric": "validation/loss/尾", "maximize": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_parallel_coordinates(tmp_path / "sweep.png", **runs)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize(
    ("complete", "best"),
    [
        ([True, True, True], 0.25),  # of runs that are equally good the first
        ([True, False, False], 0.0),  # before any that was not trained to its end
    ],
)
def test_the_best_run_is_drawn_on_top(tmp_path, monkeypatch, complete, best):
    drawn, plot = [], Axes.plot

    def record(axes, places, heights, *, linewidth, **style):
        drawn.append((linewidth, heights[0]))
        return plot(axes, places, heights, linewidth=linewidth, **style)

    monkeypatch.setattr(Axes, "plot", record)
    rate = read_parameter("rate", {"min": 0.0, "max": 1.0})
    runs = {"values": [0.3, 0.5, 0.5], "parameters": [{"rate": value} for value in (0.0, 0.25, 1.0)]}
    runs |= {"complete": complete, "axes": [rate], "metric": "score", "maximize": True}
    draw_parallel_coordinates(tmp_path / "sweep.png", **runs)
    assert max(drawn) == drawn[-1] == (3.0, best)


@pytest.mark.parametrize(
    ("complete", "title"),
    [
        ([True, True], "2 runs, thick: best"),
        ([True, False], "2 runs, thick: best, dotted: 1 not trained to the end"),
        ([False, False], "2 runs, thick: best, dotted: 2 not trained to the end"),
    ],
)
def test_the_title_says_how_many_runs_are_dotted(tmp_path, monkeypatch, complete, title):
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, text, **style: titles.append(text))
    rate = read_parameter("rate", {"min": 0.0, "max": 1.0})
    runs = {"values": [0.3, 0.5], "parameters": [{"rate": 0.1}, {"rate": 0.2}], "complete": complete, "axes": [rate]}
    draw_parallel_coordinates(tmp_path / "sweep.png", **runs, metric="score", maximize=True)
    assert titles == [title]


def test_an_axis_of_logarithms_with_a_0_is_one_of_numbers():
    assert np.allclose(number_axis("rate", [0.0, 0.01, 0.1], log=True).positions, [0, 0.1, 1])


def test_equal_factors_are_equal_steps_of_an_axis_of_logarithms():
    assert np.allclose(number_axis("rate", [1e-4, 1e-3, 1e-2], log=True).positions, [0, 0.5, 1])
