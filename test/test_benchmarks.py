"""What the scripts of `benchmarks/` print and write, without measuring anything."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def accuracy(monkeypatch):
    """The script, which measures nothing."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("accuracy")
    monkeypatch.setattr(script, "measure", lambda train, test, minutes, seed, flags: {"data": train.stem, "seed": seed})
    threads = torch.get_num_threads()
    yield script
    torch.set_num_threads(threads)


def test_the_table_of_accuracy_says_on_what_and_how_it_was_measured(accuracy, tmp_path, monkeypatch, capsys):
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text("{}")
    pair, path = f"{tmp_path / 'train.json'}:{tmp_path / 'test.json'}", tmp_path / "rows.json"
    arguments = ["--minutes", "2.5", "--threads", "1", "--seeds", "0", "7", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", pair, *arguments, "--set", "optimizer=adamw", "cutmix=.5"])
    accuracy.main()
    first, *table = capsys.readouterr().out.splitlines()
    machine = accuracy.machine()
    assert f"torch {torch.__version__}" in machine
    assert first == f"{machine}, 1 thread, --minutes 2.5 --set optimizer=adamw cutmix=.5"
    assert table[0].startswith("| data | seed |")
    assert json.loads(path.read_text()) == {
        "machine": machine,
        "threads": 1,
        "minutes": 2.5,
        "flags": {"optimizer": "adamw", "cutmix": 0.5},
        "rows": [{"data": "train", "seed": 0}, {"data": "train", "seed": 7}],
    }


def test_defaults_are_called_that(accuracy, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["accuracy.py", f"{tmp_path / 'a.json'}:{tmp_path / 'a.json'}", "--threads", "2"])
    accuracy.main()
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{accuracy.machine()}, 2 threads, --minutes 5"
