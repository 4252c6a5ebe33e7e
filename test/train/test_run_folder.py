"""Where a run lies, what it goes on from, and what it says of where it came from."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from keypoint_detection.errors import InputError
from keypoint_detection.train.run_folder import RUN_DIR_VARIABLE, RunFolder, provenance


def test_processes_of_other_ranks_take_the_folder_of_the_first_one_which_takes_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN_DIR_VARIABLE, "before")  # as after another training of this program
    for rank in ("0", None):
        monkeypatch.setenv("LOCAL_RANK", rank) if rank else monkeypatch.delenv("LOCAL_RANK")
        first = RunFolder.choose()
        assert first.path.parent == Path("runs")
        assert first.is_new
    first.make()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert RunFolder.choose() == RunFolder(first.path.absolute(), is_new=False)
    assert RunFolder.choose("given").path == Path("given")


def test_a_folder_that_was_there_before_stays_where_the_training_is_refused(tmp_path):
    with pytest.raises(InputError), RunFolder.choose(str(tmp_path)).removed_if_refused():
        raise InputError("no")
    assert tmp_path.exists()


def test_the_latest_checkpoint_is_the_one_that_was_written_last(tmp_path):
    folder = RunFolder(tmp_path)
    folder.make()
    last, first, second = (tmp_path / name for name in ("checkpoints/last.ckpt", "hpc_ckpt_1.ckpt", "hpc_ckpt_2.ckpt"))
    assert folder.latest_checkpoint == last
    for seconds, path in enumerate([second, first, last, first]):
        path.touch()
        os.utime(path, (0, seconds))
        assert folder.latest_checkpoint == path


def test_a_record_keeps_the_first_training_and_adds_those_that_went_on(tmp_path):
    folder = RunFolder(tmp_path)
    first, second, third = (
        {"flags": {"rate": rate}, "wandb_id": run, "command": rate} for rate, run in ((1, None), (2, "abc"), (3, None))
    )
    folder.write_json("run.json", {"command": 0, "flags": 0, "resumed": [0]})
    folder.write_record(first, goes_on=False)
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == first
    folder.write_record(second, goes_on=True)
    folder.write_record(third, goes_on=True)
    assert folder.read_json("run.json") == first | {"wandb_id": "abc", "resumed": [second, third]}
    folder.write_json("run.json", {"command": 0})  # of a version that did not write the flags
    folder.write_record(third, goes_on=True)
    assert folder.read_json("run.json") == third | {"command": 0, "resumed": [third]}


def test_the_revision_is_that_of_the_folder_where_the_training_started(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=me", "-c", "user.email=me@home"]
        return subprocess.run(["git", *who, *words], check=True, capture_output=True, encoding="utf-8").stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert provenance({})["git"] is None
    Path("program.py").write_text("1")
    git("init", "--quiet")
    git("add", "program.py")
    git("commit", "--quiet", "--message", "first")
    git("tag", "-a", "v1", "-m", "release")
    revision = git("rev-parse", "HEAD")
    assert provenance({})["git"] == revision
    Path("program.py").write_text("2")
    assert provenance({})["git"] == f"{revision}-dirty"
