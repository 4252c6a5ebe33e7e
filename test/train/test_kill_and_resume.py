"""Trainings that are really killed, and disks that are really full."""

import errno
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from configuration import DEFAULT_HYPERPARAMETERS, TEST_DATASET

from keypoint_detection import fit
from keypoint_detection.errors import InputError
from keypoint_detection.train import checkpoint_io, train
from keypoint_detection.train.metrics_file import MetricsFile
from keypoint_detection.train.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SHORT = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_pictures": 0, "checkpoint_every_n_steps": 1}


def test_killed_and_terminated_in_mid_epoch_a_training_ends_with_the_same_bits():
    """The trial of the documentation, with one SIGKILL and one SIGTERM."""
    command = [sys.executable, "trials/kill_and_resume.py", "--kills", "2", "--variants", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGKILL after row" in done.stdout
    assert ": exit 143" in done.stdout
    assert "2 interruptions, 0 of 1 trainings ended differently" in done.stdout


class CtrlC(pl.Callback):
    """Interrupts this process after some steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step in self.steps:
            os.kill(os.getpid(), signal.SIGINT)


def fit_with(callback, monkeypatch, **flags):
    build = train.build_callbacks
    with monkeypatch.context() as patched:
        patched.setattr(train, "build_callbacks", lambda *arguments: [callback, *build(*arguments)])
        fit(**flags)


def test_after_ctrl_c_a_training_goes_on_from_where_it_was(tmp_path, monkeypatch, caplog):
    flags = SHORT | {"checkpoint_every_n_steps": None, "max_epochs": 3, "resume": "auto", "run_dir": str(tmp_path)}
    before = signal.getsignal(signal.SIGINT)
    with caplog.at_level("WARNING"), pytest.raises(SystemExit) as stopped:
        fit_with(CtrlC([3]), monkeypatch, **flags)
    assert stopped.value.code == 130
    assert f"interrupted after step 3: resume with the same flags and --resume {tmp_path}\n" in caplog.text
    assert signal.getsignal(signal.SIGINT) is before
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    fit(**flags)
    fit(**flags | {"run_dir": str(tmp_path / "whole")})
    found, whole = (
        torch.load(path, weights_only=True) for path in (last, tmp_path / "whole" / "checkpoints" / "last.ckpt")
    )
    assert found["global_step"] == whole["global_step"] == 6
    for weights in ("state_dict", "current_model_state"):
        torch.testing.assert_close(found[weights], whole[weights], rtol=0, atol=0, equal_nan=True)


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    class Twice(CtrlC):
        def on_train_batch_end(self, trainer, *arguments):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"^interrupted$"):
        fit_with(Twice([]), monkeypatch, **SHORT, run_dir=str(tmp_path))
    assert not list((tmp_path / "checkpoints").iterdir())


class InEvaluation(pl.Callback):
    def on_validation_batch_end(self, trainer, *arguments):
        if trainer.state.fn == "validate":
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("where", ["evaluation", "report"])
def test_ctrl_c_after_the_training_says_how_to_go_on(tmp_path, monkeypatch, caplog, where):
    flags = SHORT | {"max_epochs": 1, "resume": "auto", "run_dir": str(tmp_path)}
    callback = InEvaluation() if where == "evaluation" else pl.Callback()
    with monkeypatch.context() as patched, caplog.at_level("WARNING"):
        if where == "report":
            writes_report = "keypoint_detection.train.finish.write_final_report"
            patched.setattr(writes_report, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        told = f"interrupted: resume with the same flags and --resume {tmp_path}"
        with pytest.raises(KeyboardInterrupt, match=re.escape(told)):
            fit_with(callback, monkeypatch, **flags)
    caplog.clear()
    with caplog.at_level("INFO"):
        result = fit(**flags)
    assert "best/meanAP" in result.metrics
    assert "time: " not in caplog.text  # no step was made


class InLastValidation(pl.Callback):
    def __init__(self, number):
        self.number = number

    def on_validation_batch_end(self, trainer, *arguments):
        if trainer.state.fn == "fit" and trainer.global_step == 4:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_in_its_last_validation_a_training_does_not_go_on_to_its_report(
    tmp_path, monkeypatch, caplog, number, code
):
    flags = SHORT | {"max_epochs": 2, "resume": "auto", "run_dir": str(tmp_path)}
    with caplog.at_level("WARNING"), pytest.raises(SystemExit) as stopped:
        fit_with(InLastValidation(number), monkeypatch, **flags)
    assert stopped.value.code == code
    assert f"after step 4: resume with the same flags and --resume {tmp_path}\n" in caplog.text
    assert not (tmp_path / "curves.png").exists()
    assert "best/meanAP" in fit(**flags).metrics


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_train_start"])
def test_terminated_before_its_first_step_a_training_does_not_end_as_if_it_were_done(tmp_path, monkeypatch, hook):
    flags = SHORT | {"max_epochs": 1, "resume": "auto", "run_dir": str(tmp_path)}
    callback = pl.Callback()
    setattr(callback, hook, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        fit_with(callback, monkeypatch, **flags)
    assert stopped.value.code == 143
    assert "best/meanAP" in fit(**flags).metrics


def test_terminated_in_the_final_evaluation_a_training_does_not_end_as_if_it_were_done(tmp_path, monkeypatch):
    whole = SHORT | {"max_epochs": 1, "resume": "auto", "run_dir": str(tmp_path)}
    validate = pl.Trainer.validate

    def terminated(trainer, *arguments, **options):
        trainer._signal_connector.register_signal_handlers = lambda: None
        trainer._signal_connector.received_sigterm = True
        return validate(trainer, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(pl.Trainer, "validate", terminated)
        with pytest.raises(SystemExit) as stopped:
            fit(**whole)
    assert stopped.value.code == 143
    assert not (tmp_path / "report.html").exists()
    assert "best/meanAP" in fit(**whole).metrics
    assert (tmp_path / "report.html").exists()


def test_the_trial_notices_a_single_bit():
    spec = importlib.util.spec_from_file_location("trial", ROOT / "trials" / "kill_and_resume.py")
    trial = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trial)
    whole = {"a": torch.tensor([1.0, float("nan")]), "b": [1, {"c": None}]}
    assert trial.differences(whole, {"a": whole["a"].clone(), "b": [1, {"c": None}]}) == []
    other = torch.tensor([1.0000001, float("nan")])
    assert trial.differences(whole, {"a": other, "b": [2, {"c": None}]}) == ["/a", "/b/0: 1 2"]


def test_full_disk_stops_the_training_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    fit(**SHORT | {"max_epochs": 1}, run_dir=str(tmp_path))
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("keypoint_detection.files.os.fsync", full)
        patch.setattr("keypoint_detection.train.run_folder.RunFolder.write_json", lambda *_: None)
        patch.setattr(MetricsFile, "log_metrics", lambda *_, **__: None)
        with pytest.raises(InputError, match=r"last\.ckpt cannot be written: No space .* resume from it with "):
            fit(**SHORT, run_dir=str(tmp_path), resume="auto")
    assert last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} <= {"last.ckpt", "best.ckpt"}
    assert torch.load(last, weights_only=True)["global_step"] == 2
    fit(**SHORT, run_dir=str(tmp_path), resume="auto")
    assert torch.load(last, weights_only=True)["global_step"] == 4


def test_too_small_a_disk_is_an_error_before_training(tmp_path, monkeypatch):
    usage = checkpoint_io.shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(checkpoint_io.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"only 0\.0 MB of disk space are free, expected at least .* MB for"):
        fit(**SHORT, run_dir=str(tmp_path))
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("save_top_k", "there", "copies"),
    [
        (1, 0, 9),  # best.ckpt, and weights, average and two moments in last.ckpt and in the next one
        (3, 0, 12),
        (1, 2, 7),  # of checkpoints that are there already
    ],
)
def test_the_disk_needs_room_for_the_next_last_checkpoint_beside_the_former_one(
    tmp_path, monkeypatch, save_top_k, there, copies
):
    folder, network = RunFolder(tmp_path), torch.nn.Linear(10, 24, bias=False)  # of 960 bytes
    folder.make()
    (folder.checkpoints / "best.ckpt").write_bytes(bytes(960 * there))
    usage = checkpoint_io.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_io.shutil, "disk_usage", lambda _: usage._replace(free=960 * copies))
    checkpoint_io.check_space(folder, network, save_top_k)
    monkeypatch.setattr(checkpoint_io.shutil, "disk_usage", lambda _: usage._replace(free=960 * copies - 1))
    with pytest.raises(InputError, match="MB of disk space are free"):
        checkpoint_io.check_space(folder, network, save_top_k)


class TakesImagesAway(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *arguments):
        for path in self.folder.rglob("*.png"):
            path.unlink()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_disappears_ends_with_what_goes_on_without_it_and_with_it(tmp_path, monkeypatch, workers):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(TEST_DATASET, data)
    paths = {"json_dataset_path": data / "annotations.json", "image_dataset_path": data, "run_dir": run}
    flags = SHORT | paths | {"cache_images": False, "num_workers": workers, "max_epochs": 20}
    with pytest.raises(InputError) as error:
        fit_with(TakesImagesAway(data), monkeypatch, **flags)
    which, what = str(error.value).split(": no such image file")
    assert which.startswith(f"{data / 'annotations.json'}: entry ")
    assert what == (
        "; --corrupt_images skip trains without such images; once it can be read, resume with the same flags and "
        f"--resume {run}"
    )
    shutil.copytree(TEST_DATASET, data, dirs_exist_ok=True)
    assert fit(**flags | {"resume": run, "max_epochs": 1}).best_checkpoint.exists()


@pytest.mark.parametrize("name", ["checkpoint_every_n_epochs", "checkpoint_every_n_steps"])
def test_interval_below_one_is_bad_input(name):
    with pytest.raises(InputError, match=f"--{name} 0: expected at least 1"):
        fit(**SHORT | {name: 0})
