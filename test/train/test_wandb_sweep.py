"""Drives the real `wandb sweep` and `wandb agent` against the stand-in server."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from configuration import DEFAULT_SWEEP, TEST_DATASET
from wandb.cli.cli import cli
from wandb_offline import read_runs
from wandb_operations import suggestions

# A training in miniature: flags as the agent gives them, and the sweep's values over them.
PROGRAM = """
import os, sys
from pathlib import Path
from keypoint_detection.train.wandb_logger import create_wandb_logger, finish_wandb, sweep_overrides

overrides = sweep_overrides()
assert sorted(sys.argv[1:]) == sorted(f"--{name}={value}" for name, value in overrides.items()), sys.argv
hyperparameters = {"learning_rate": 1.0, "batch_size": 3, **overrides}
logger = create_wandb_logger(Path(os.environ["WANDB_RUN_ID"]), hyperparameters, wandb_project="other")
logger.log_hyperparams(hyperparameters)
logger.log_metrics({"validation/meanAP": hyperparameters["learning_rate"]}, step=0)
finish_wandb(logger)
"""

# The agent looks after its runs every 5 s, and when Python takes it down, a thread of wandb's may still be writing,
# which aborts it now and then. That is all that is changed in it.
QUICK_CLIENT = """
import os, sys
import wandb.wandb_agent as agent
from wandb.cli.cli import cli

agent.Agent.POLL_INTERVAL = 0.5
try:
    cli()
except SystemExit as end:
    sys.stdout.flush()
    os._exit(end.code or 0)
"""


def run_agent(folder, *arguments):
    """Runs `wandb agent` to its end and returns what it and its runs printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", QUICK_CLIENT, "agent", *arguments]
    result = subprocess.run(
        command, cwd=folder, env=environment, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_agent_runs_the_program_once_for_every_suggestion(tmp_path, wandb_server, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    parameters = {"learning_rate": {"values": [0.25, 1e-05]}, "augment_train": {"value": True}}
    sweep = {"program": str(program), "method": "grid", "parameters": parameters}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))

    monkeypatch.chdir(tmp_path)
    cli.main(["sweep", "--project", "boxes", "sweep.yaml"], standalone_mode=False)
    (sweep_id,) = wandb_server.sweeps
    output = run_agent(tmp_path, f"tester/boxes/{sweep_id}")

    assert [run.state for run in wandb_server.runs.values()] == ["finished", "finished"]
    assert {(run.sweep, run.project) for run in wandb_server.runs.values()} == {(sweep_id, "boxes")}
    assert list(wandb_server.runs) == list(wandb_server.sweeps[sweep_id].started)
    for run, learning_rate in zip(wandb_server.runs.values(), [0.25, 1e-05], strict=True):
        expected = {"learning_rate": learning_rate, "batch_size": 3, "augment_train": True}
        assert run.config.items() >= expected.items()
        assert [row["validation/meanAP"] for row in run.history] == [learning_rate]
        (local,) = read_runs(tmp_path / run.id)
        assert (local.id, local.config["learning_rate"], local.exit_code) == (run.id, learning_rate, 0)
    assert wandb_server.unknown_operations == []
    assert "Ignoring" not in output


def test_agent_runs_the_training_itself(tmp_path, wandb_server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = DEFAULT_SWEEP["parameters"] | {
        "json_dataset_path": {"value": str(TEST_DATASET / "annotations.json")},
        "image_dataset_path": {"value": str(TEST_DATASET)},
        "batch_size": {"value": 2},
        "n_channels": {"value": 4},
        "max_pictures": {"value": 0},
    }
    program = TEST_DATASET.parents[1] / "keypoint_detection" / "train" / "train.py"
    sweep = DEFAULT_SWEEP | {"program": str(program), "method": "grid", "parameters": parameters}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    cli.main(["sweep", "--project", "boxes", "sweep.yaml"], standalone_mode=False)
    (sweep_id,) = wandb_server.sweeps
    run_agent(tmp_path, f"tester/boxes/{sweep_id}")

    runs, folders = list(wandb_server.runs.values()), sorted((tmp_path / "runs").iterdir())
    assert [run.state for run in runs] == ["finished", "finished"]
    assert [run.config["learning_rate"] for run in runs] == [0.001, 0.003]
    for run, folder in zip(runs, folders, strict=True):
        assert yaml.safe_load((folder / "hparams.yaml").read_text())["learning_rate"] == run.config["learning_rate"]
        assert json.loads((folder / "run.json").read_text())["wandb_id"] == run.id
        with (folder / "metrics.csv").open(newline="") as file:
            losses = [float(row["validation/loss"]) for row in csv.DictReader(file) if row["validation/loss"]]
        assert [row["validation/loss"] for row in run.history if "validation/loss" in row] == pytest.approx(losses)
        assert len(losses) == 2
        assert 0 <= run.summary["best/meanAP"] <= 1
        assert [artifact.committed for artifact in run.artifacts] == [True]
    assert wandb_server.unknown_operations == []


def test_grid_suggests_every_combination_in_order():
    config = {"method": "grid", "parameters": {"a": {"values": [1, 2]}, "b": {"values": ["x", "y"]}, "c": {"value": 0}}}
    expected = [(1, "x", 0), (1, "y", 0), (2, "x", 0), (2, "y", 0)]
    assert [tuple(choice.values()) for choice in suggestions(config, count=9)] == expected
    assert len(suggestions({**config, "run_cap": 3}, count=9)) == 3


def test_random_search_draws_within_the_bounds():
    parameters = {"whole": {"min": 2, "max": 3}, "real": {"min": 0.5, "max": 1.5}, "name": {"values": ["x", "y"]}}
    drawn = suggestions({"method": "random", "parameters": parameters}, count=100)
    assert {choice["whole"] for choice in drawn} == {2, 3}
    assert {choice["name"] for choice in drawn} == {"x", "y"}
    assert all(0.5 <= choice["real"] <= 1.5 for choice in drawn)
    assert len({choice["real"] for choice in drawn}) == 100
