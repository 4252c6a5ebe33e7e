"""The order of a sweep's runs, and what its table, its file and its picture say of them."""

from pathlib import Path

import pytest

from keypoint_detection.sweep import results
from keypoint_detection.sweep.parameters import read_parameter
from keypoint_detection.sweep.results import Run, ranked, table, write_results
from keypoint_detection.sweep.sweep_file import SweepFile


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


def test_table_file_and_picture_say_what_came_of_each_run(tmp_path, monkeypatch):
    entries = {"rate": {"min": 0.0, "max": 1.0}, "epochs": {"value": 3}, "loss": {"values": ["bce", "mse"]}}
    parameters = [read_parameter(name, entry) for name, entry in entries.items()]
    sweep = SweepFile(Path(), {}, "random", "score", False, parameters, [], Path(), Path())
    first, second = ({"rate": rate, "epochs": 3, "loss": loss} for rate, loss in ((0.00025, "bce"), (1.0, "mse")))
    runs = [
        Run(2, "complete", 0.0, first, 12, 61.4, ""),
        Run(0, "pruned", 0.12346, second, 5, 9.6, ""),
        Run(1, "failed", None, second, 0, 2.0, "out of luck"),
        Run(3, "waiting", None, {}, 0, None, ""),
    ]
    assert table(runs, sweep).splitlines() == [
        "rank  run       score   state     evaluations  time  rate     loss",
        "1     run-0002  0.0000  complete  12           61 s  0.00025  bce",
        "2     run-0000  0.1235  pruned    5            10 s  1        mse",
        "3     run-0001  -       failed    0            2 s   1        mse",
        "4     run-0003  -       waiting   0            -     -        -",
    ]
    drawn = {}
    monkeypatch.setattr(results, "draw_parallel_coordinates", lambda path, **content: drawn.update(content))
    write_results(runs, sweep, tmp_path)
    assert (tmp_path / "runs.csv").read_text(encoding="utf-8").splitlines() == [
        "run,score,state,evaluations,seconds,problem,rate,epochs,loss",
        "run-0002,0.0,complete,12,61.4,,0.00025,3,bce",
        "run-0000,0.12346,pruned,5,9.6,,1.0,3,mse",
        "run-0001,,failed,0,2.0,out of luck,1.0,3,mse",
        "run-0003,,waiting,0,,,,,",
    ]
    assert drawn == {
        "values": [0.0, 0.12346], "parameters": [first, second], "complete": [True, False], "metric": "score",
        "axes": [parameters[0], parameters[2]], "maximize": False,
    }  # fmt: skip


def test_columns_of_the_table_stand_where_a_terminal_shows_them_whatever_the_letters():
    entries = {"channels": {"values": ["頭 a", "nose"]}, "loss": {"values": ["bce", "mse"]}}
    parameters = [read_parameter(name, entry) for name, entry in entries.items()]
    sweep = SweepFile(Path(), {}, "random", "score", False, parameters, [], Path(), Path())
    runs = [
        Run(number, "waiting", None, {"channels": channels, "loss": "bce"}, 0, None, "")
        for number, channels in enumerate(("頭 a", "nose"))
    ]
    assert table(runs, sweep).splitlines()[1:] == [
        "1     run-0000  -      waiting  0            -     頭 a      bce",
        "2     run-0001  -      waiting  0            -     nose      bce",
    ]
