"""What is drawn for a run, which choice a number that Optuna draws stands for, and when a run is stopped."""

from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from keypoint_detection.sweep.parameters import read_parameter
from keypoint_detection.sweep.study import create_pruner, create_sampler
from keypoint_detection.sweep.sweep_file import SweepFile


@pytest.mark.parametrize(
    ("drawn", "choice"), [(0.0, "a"), (0.19, "a"), (0.2, "b"), (0.69, "b"), (0.7, "c"), (1.0, "c")]
)
def test_a_weighted_choice_takes_its_share_of_0_to_1(drawn, choice):
    parameter = read_parameter("x", {"values": ["a", "b", "c"], "probabilities": [0.2, 0.5, 0.3]})
    assert parameter.draw(SimpleNamespace(suggest_float=lambda name, low, high: low + drawn * (high - low))) == choice


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_what_a_run_draws_goes_by_its_number_and_the_seed_of_the_sweep(method):
    def draw(seed, run):
        study = optuna.create_study(sampler=create_sampler(method, seed, run))
        return study.ask().suggest_float("x", 0.0, 1.0)

    assert draw(0, 3) == draw(0, 3)
    assert len({draw(seed, run) for seed in range(3) for run in range(3)}) == 9


@pytest.mark.parametrize(
    ("entry", "least", "most"),
    [
        ({"type": "hyperband", "max_iter": 27}, 3, 27),  # of two brackets, each a third of the one before
        ({"type": "hyperband", "max_iter": 64, "eta": 2, "s": 4}, 4, 64),
        ({"type": "hyperband", "max_iter": 5}, 1, 5),
        ({"type": "hyperband", "min_iter": 2}, 2, "auto"),
        ({"type": "hyperband", "min_iter": 3, "max_iter": 3}, 3, 3),
    ],
)
def test_hyperband_begins_where_wandb_does(entry, least, most):
    sweep = SweepFile(Path(), {"early_terminate": entry}, "random", "score", True, [], [], Path(), Path())
    pruner = create_pruner(sweep, prune=True, prune_after=5)
    assert (pruner._min_resource, pruner._max_resource) == (least, most)
