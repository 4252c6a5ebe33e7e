"""Two trainings in one folder at once."""

import os
import platform
import signal
import time

import pytest
from configuration import DEFAULT_HYPERPARAMETERS
from pytorch_lightning.utilities import rank_zero_only

from keypoint_detection import fit
from keypoint_detection.errors import InputError
from keypoint_detection.train import folder_lock
from keypoint_detection.train.folder_lock import LOCK_FILE, FolderLock

pytest.importorskip("fcntl")
SHORT = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_epochs": 1, "max_pictures": 0}


class Holder:
    """Another process that holds the lock of a folder, with a worker that it has forked."""

    def __init__(self, folder):
        ours, theirs = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            FolderLock().take(folder)
            worker = os.fork()
            if worker:
                os.write(theirs, str(worker).encode())
            time.sleep(60)
            os._exit(0)
        self.worker = int(os.read(ours, 20))

    def kill(self):
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            self.process = 0


@pytest.fixture
def holder(tmp_path):
    holder = Holder(tmp_path)
    yield holder
    holder.kill()
    os.kill(holder.worker, signal.SIGKILL)


@pytest.mark.parametrize("given", ["run_dir", "auto", "folder", "file"])
def test_a_folder_where_a_training_runs_is_refused_before_data_is_read(holder, tmp_path, given):
    flags = {
        "run_dir": {"run_dir": str(tmp_path)},
        "auto": {"run_dir": str(tmp_path), "resume": "auto"},
        "folder": {"resume": str(tmp_path)},
        "file": {"resume": str(tmp_path / "checkpoints" / "last.ckpt")},
    }[given]
    with pytest.raises(InputError) as error:
        fit(**SHORT | {"json_dataset_path": "nowhere.json"}, **flags)
    assert str(error.value) == f"{tmp_path}: another training run is writing there (process {holder.process})"
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_killed_training_leaves_a_folder_that_is_free_at_once(holder, tmp_path):
    with FolderLock() as lock, pytest.raises(InputError):
        lock.take(tmp_path)
    holder.kill()
    os.kill(holder.worker, 0)  # it lives on
    with FolderLock() as lock:
        lock.take(tmp_path)
        assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()} {platform.node()}"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_not_there_is_locked_once_it_is(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    seen = []

    def look(*_):
        seen.extend(path.name for path in folder.iterdir())
        raise InputError("enough")

    monkeypatch.setattr("keypoint_detection.train.train.check_space", look)
    with pytest.raises(InputError, match="enough"):
        fit(**SHORT, run_dir=str(folder))
    assert sorted(seen) == [LOCK_FILE, "checkpoints", "pictures"]
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "pictures"]


def test_of_several_processes_the_first_locks(tmp_path, monkeypatch):
    for name, number in (("NODE_RANK", "1"), ("PMI_RANK", "2")):
        with monkeypatch.context() as patched, FolderLock() as lock:
            patched.setenv(name, number)
            lock.take(tmp_path)
            assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patched, FolderLock() as lock:
        patched.setattr(rank_zero_only, "rank", 1)
        lock.take(tmp_path)
        assert not list(tmp_path.iterdir())


def test_the_process_of_another_machine_that_may_be_gone_is_named_with_the_file(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "here")
    machine = (tmp_path / LOCK_FILE).read_text().split()[1]
    with FolderLock() as lock, pytest.raises(InputError) as error:
        lock.take(tmp_path)
    who = f"process {holder.process} on {machine}; if it no longer runs, remove {tmp_path / LOCK_FILE}"
    assert str(error.value) == f"{tmp_path}: another training run is writing there ({who})"


@pytest.mark.parametrize("without", ["fcntl", "locks", "folder"])
def test_without_locks_a_training_runs_all_the_same(tmp_path, monkeypatch, without):
    def refused(*_):
        raise OSError(37, "No locks available")

    if without == "fcntl":
        monkeypatch.setattr(folder_lock, "fcntl", None)
    elif without == "locks":
        monkeypatch.setattr(folder_lock.fcntl, "lockf", refused)
    with FolderLock() as lock:
        lock.take(tmp_path / "nowhere" if without == "folder" else tmp_path)
        assert not list(tmp_path.iterdir())


def test_who_waits_for_the_file_that_its_holder_removes_makes_it_anew(tmp_path, monkeypatch):
    lockf, removed = folder_lock.fcntl.lockf, []

    def removed_before(*arguments):
        if not removed:
            removed.append((tmp_path / LOCK_FILE).unlink())
        lockf(*arguments)

    monkeypatch.setattr(folder_lock.fcntl, "lockf", removed_before)
    with FolderLock() as lock:
        lock.take(tmp_path)
        assert (tmp_path / LOCK_FILE).exists()


def test_a_file_that_another_training_has_made_anew_meanwhile_is_its_own(tmp_path, monkeypatch):
    lockf, holders = folder_lock.fcntl.lockf, []

    def made_anew_before(*arguments):
        if not holders:
            (tmp_path / LOCK_FILE).unlink()
            holders.append(None)  # in the process that it forks, too
            holders[0] = Holder(tmp_path)
        lockf(*arguments)

    monkeypatch.setattr(folder_lock.fcntl, "lockf", made_anew_before)
    try:
        with FolderLock() as lock, pytest.raises(InputError, match="another training run is writing there"):
            lock.take(tmp_path)
    finally:
        holders[0].kill()
        os.kill(holders[0].worker, signal.SIGKILL)
