"""The project in `examples/` trains and finds, and its README and sweep give flags that there are."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from configuration import TEST_DATASET

from keypoint_detection import __file__ as package
from keypoint_detection.sweep.sweep_file import read_sweep_file
from keypoint_detection.train.flags import build_parser

EXAMPLE = Path(__file__).parents[1] / "examples" / "box_project"


@pytest.fixture
def project(tmp_path):
    copy = shutil.copytree(EXAMPLE, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TEST_DATASET, copy / "data" / "train")
    return copy


def run(project, *command, code=0):
    environment = {**os.environ, "PYTHONPATH": str(Path(package).parents[1])}
    done = subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_trains_a_backbone_of_its_own_and_finds_with_it(project):
    flags = ["--backbone_type=Pyramid", "--n_channels=8", "--n_levels=2", "--max_epochs=25", "--wandb_mode=disabled"]
    data = [f"--json_{part}=data/train/annotations.json" for part in ("dataset_path", "validation_dataset_path")]
    assert "AP@2" in run(project, "train.py", *data, *flags, "--run_dir=runs/first")
    lines = run(project, "find_corners.py", "runs/first/checkpoints/best.ckpt", "data/train/images/000000.png")
    found = [line.split() for line in lines.splitlines()]
    assert found
    assert {channel for channel, *_ in found} <= {"corner_keypoints", "flap_corner_keypoints"}
    evaluated = ["--checkpoint=runs/first/checkpoints/best.ckpt", "--json_dataset_path=data/train/annotations.json"]
    assert "4 images" in run(project, "commands.py", "evaluate", *evaluated)
    assert run(project, "find_corners.py", "nowhere.ckpt", "image.png", code=2).startswith("error: ")
    assert all(0 <= float(place) <= 128 for _, x, y, _ in found for place in (x, y))


def test_its_readme_and_its_sweep_give_flags_that_there_are(project, monkeypatch):
    monkeypatch.chdir(project)
    command = re.search(r"^python train\.py ((?:.*\\\n)*.*)", Path("README.md").read_text(), re.MULTILINE)
    given = shlex.split(command[1].replace("\\\n", " "))
    assert build_parser().parse_args(given).max_time == "00:00:05:00"

    assert read_sweep_file("sweep.yaml").program == project / "train.py"
    for name, entry in yaml.safe_load(Path("sweep.yaml").read_text())["parameters"].items():
        for value in entry.get("values", [entry.get("value", entry.get("min"))]):
            assert build_parser().parse_args([*given, f"--{name}={value}"])[name] == value
