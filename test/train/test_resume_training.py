"""An interrupted training that goes on ends as one that was never interrupted."""

import csv
import functools
import json
import re
from pathlib import Path

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit
from keypoint_detection.cli import main
from keypoint_detection.errors import InputError
from keypoint_detection.models.losses import LOSSES
from keypoint_detection.train import build
from keypoint_detection.train.callbacks import LossLogger
from keypoint_detection.train.last_checkpoint import LastCheckpoint
from keypoint_detection.train.recipe import Device
from keypoint_detection.train.resume import find_interrupted

SHORT = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_epochs": 4, "max_pictures": 0}


def logged(folder):
    """The losses and the mean AP by epoch."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("train/loss", "validation/loss", "validation/meanAP")
    return {name: [row[name] for row in rows if row.get(name)] for name in names}


@pytest.mark.parametrize("how", ["auto", "folder", "file"])
def test_weights_and_metrics_are_those_of_an_uninterrupted_training(tmp_path, monkeypatch, how):
    whole = fit(**SHORT, run_dir=str(tmp_path / "whole"))

    real = LossLogger.on_train_batch_end

    def killed(self, trainer, *arguments):
        if trainer.current_epoch == 2:
            raise RuntimeError("killed")
        real(self, trainer, *arguments)

    folder = tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr(LossLogger, "on_train_batch_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(**SHORT, run_dir=str(folder))
    resume = {"auto": "auto", "folder": str(folder), "file": str(folder / "checkpoints" / "last.ckpt")}[how]
    again = fit(**SHORT, run_dir=str(folder), resume=resume)
    first, second = (torch.load(p / "checkpoints" / "last.ckpt", weights_only=True) for p in (whole.run_dir, folder))
    assert first["global_step"] == second["global_step"]
    for name, value in first["state_dict"].items():
        if name != "score_thresholds":
            assert torch.equal(value, second["state_dict"][name]), name
    assert logged(whole.run_dir) == logged(folder)
    assert again.metrics["best/meanAP"] == whole.metrics["best/meanAP"]


def test_the_hyperparameters_of_an_interrupted_training_bring_its_flags(tmp_path):
    flags = SHORT | dict.fromkeys(("batch_size", "heatmap_sigma", "image_size"), "auto") | {"rotation": 7.0}
    whole = fit(**flags, run_dir=str(tmp_path / "whole"))
    folder = tmp_path / "again"
    fit(**flags | {"max_epochs": 2}, run_dir=str(folder))
    command = ["train", "--config", str(folder / "hparams.yaml"), "--resume", str(folder), "--max_epochs", "4"]
    assert main(command) == 0
    first, second = (torch.load(p / "checkpoints" / "last.ckpt", weights_only=True) for p in (whole.run_dir, folder))
    assert first["global_step"] == second["global_step"]
    assert first["hyper_parameters"] == second["hyper_parameters"]


@pytest.mark.parametrize("stops", [[3, 4], [1, 3, 4, 5], [6, 7]])
def test_several_interruptions_between_and_within_epochs_change_no_bit(tmp_path, monkeypatch, stops):
    """Epochs have three steps: 3 and 6 lie between epochs, the others within them."""
    every_step = SHORT | {"max_epochs": 3, "batch_size": 1, "checkpoint_every_n_steps": 1}
    fit(**every_step, run_dir=str(tmp_path / "whole"))
    real = LastCheckpoint._save

    def killed(self, trainer, **arguments):
        real(self, trainer, **arguments)
        if stops and trainer.global_step == stops[0]:
            raise RuntimeError("killed")

    monkeypatch.setattr(LastCheckpoint, "_save", killed)
    while stops:
        with pytest.raises(RuntimeError, match="killed"):
            fit(**every_step, run_dir=str(tmp_path / "again"), resume="auto")
        stops = stops[1:]
    fit(**every_step, run_dir=str(tmp_path / "again"), resume="auto")
    first, second = (
        torch.load(tmp_path / p / "checkpoints" / "last.ckpt", weights_only=True) for p in ("whole", "again")
    )
    assert first["global_step"] == second["global_step"] == 9
    for name, value in first["state_dict"].items():
        assert torch.equal(value.nan_to_num(7), second["state_dict"][name].nan_to_num(7)), name
    assert logged(tmp_path / "whole") == logged(tmp_path / "again")


def test_a_training_that_was_killed_after_its_end_only_finishes(tmp_path):
    fit(**SHORT | {"max_epochs": 2}, run_dir=str(tmp_path))
    paths = [tmp_path / "metrics.csv", tmp_path / "checkpoints" / "last.ckpt"]
    before = [path.read_bytes() for path in paths]
    (tmp_path / "report.html").unlink()
    fit(**SHORT | {"max_epochs": 2}, run_dir=str(tmp_path), resume="auto")
    assert [path.read_bytes() for path in paths] == before
    assert (tmp_path / "report.html").exists()


def test_a_training_that_has_ended_is_left_as_it_is(tmp_path, caplog):
    """The same flags write nothing at all, and the result is that of the run."""
    labels = SHORT["json_dataset_path"]
    flags = SHORT | {"max_epochs": 2, "run_dir": str(tmp_path), "json_test_dataset_path": labels}
    first = fit(**flags)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    caplog.set_level("INFO", "keypoint_detection")
    second = fit(**flags | {"run_dir": None, "resume": str(tmp_path)})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert caplog.messages[-1] == (
        "training had already ended, after step 4, and all results are there; to train longer, raise --max_epochs, "
        "--max_steps or --max_time"
    )
    assert first.metrics["test/meanAP"] == first.metrics["best/meanAP"]
    measured = {name: value for name, value in first.metrics.items() if name.startswith(("best/", "test/"))}
    assert second.metrics == pytest.approx(measured, rel=0, abs=0, nan_ok=True)
    assert (second.table(), second.origin, second.where_to_look()) == (
        first.table(), first.origin, first.where_to_look()
    )  # fmt: skip
    for name, value in first.detector.state_dict().items():
        assert torch.equal(value.nan_to_num(7), second.detector.state_dict()[name].nan_to_num(7)), name


@pytest.mark.parametrize(
    ("asked", "steps", "distances"),
    [
        ({"max_epochs": 3}, 6, [2, 4]),
        ({"maximal_gt_keypoint_pixel_distances": "3"}, 4, [3]),
        ({"json_test_dataset_path": SHORT["json_dataset_path"]}, 4, [2, 4]),
    ],
)
def test_a_training_that_has_ended_does_what_else_is_asked_for(tmp_path, asked, steps, distances):
    flags = SHORT | {"max_epochs": 2, "run_dir": str(tmp_path)}
    fit(**flags)
    report = (tmp_path / "report.html").stat().st_mtime_ns
    found = fit(**flags | asked | {"resume": "auto"})
    assert (tmp_path / "report.html").stat().st_mtime_ns > report
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == steps
    assert ("test/meanAP" in found.metrics) == ("json_test_dataset_path" in asked)
    assert found.threshold_distances == distances


def test_a_training_that_was_killed_after_it_was_asked_for_more_goes_on(tmp_path, monkeypatch):
    flags = SHORT | {"max_epochs": 2, "run_dir": str(tmp_path)}
    fit(**flags)

    def killed(*_):
        raise RuntimeError("killed")

    longer = flags | {"max_epochs": 3, "resume": "auto"}
    with monkeypatch.context() as patch:
        patch.setattr(LossLogger, "on_train_batch_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(**longer)
    fit(**longer)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_auto_without_anything_to_resume_starts_anew(tmp_path):
    result = fit(**SHORT | {"max_epochs": 1}, run_dir=str(tmp_path / "new"), resume="auto")
    assert result.best_checkpoint.exists()


@pytest.mark.parametrize(("resume", "named"), [("auto", "run_dir"), ("nowhere", "nowhere")])
def test_nothing_to_go_on_with_is_bad_input(resume, named, tmp_path):
    with pytest.raises(InputError, match=named):
        fit(**SHORT, resume=resume)


def test_a_checkpoint_for_use_is_small_and_nothing_to_go_on_with(tmp_path):
    best = fit(**SHORT | {"max_epochs": 1}, run_dir=str(tmp_path)).best_checkpoint
    last = best.with_name("last.ckpt")
    assert best.stat().st_size < 0.45 * last.stat().st_size
    with pytest.raises(InputError, match=r"for use, expected .*/last\.ckpt; --checkpoint .*/best\.ckpt starts a new"):
        fit(**SHORT, resume=str(best))


def test_a_training_goes_on_in_its_own_folder_and_in_no_other(tmp_path, monkeypatch):
    folder, flags = tmp_path / "run", SHORT | {"max_epochs": 1}
    last = fit(**flags, run_dir=str(folder)).best_checkpoint.with_name("last.ckpt")
    monkeypatch.chdir(tmp_path)
    for resume in (str(folder), str(last)):
        with pytest.raises(InputError) as error:
            fit(**flags, resume=resume, run_dir="other")
        assert str(error.value) == (
            f"--run_dir other: --resume {resume} continues in {folder}, expected the same folder or none"
        )
    assert not (tmp_path / "other").exists()
    for run_dir in ("run", "./run/../run", str(folder)):
        assert find_interrupted(resume=str(last), run_dir=run_dir).folder.path == folder


def test_a_relative_path_of_the_checkpoint_finds_the_folder_of_its_run(tmp_path, monkeypatch):
    fit(**SHORT | {"max_epochs": 1}, run_dir=str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    assert find_interrupted(resume="last.ckpt").folder.path == tmp_path / "run"


class OwnPath:
    """A path of the user's own kind."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [Path, OwnPath])
def test_paths_may_be_more_than_text(tmp_path, kind):
    nowhere = kind(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"--resume {tmp_path}/nowhere: expected the last.ckpt"):
        fit(**SHORT, resume=nowhere)
    with pytest.raises(InputError, match=f"checkpoint {tmp_path}/nowhere does not exist"):
        fit(**SHORT, checkpoint=nowhere)
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere"):
        fit(**SHORT | {"json_dataset_path": nowhere, "run_dir": kind(tmp_path), "resume": "auto"})


def test_a_training_goes_on_with_the_flags_that_it_learns_by_and_keeps_its_record(tmp_path, caplog):
    flags = SHORT | {"run_dir": str(tmp_path), "max_epochs": 1, "loss": "bce"}
    fit(**flags)
    first = json.loads((tmp_path / "run.json").read_text())
    hyperparameters = (tmp_path / "hparams.yaml").read_bytes()
    others = {"loss": "focal", "rotation": 3.0, "n_channels": 5, "ema_decay": 0.5, "keypoint_channels": "corner"}
    for name, other in others.items():
        with pytest.raises(InputError, match=f"--{name} {other}: the interrupted run has .*, expected the same"):
            fit(**flags | {name: other, "resume": "auto"})
    caplog.clear()
    with pytest.raises(InputError, match="--keypoint_channels corner_keypoints: the interrupted run has corner_"):
        fit(**flags | {"keypoint_channels": "corner_keypoints", "keypoint_channel_max_keypoints": -1, "resume": "auto"})
    assert "the labels have changed" not in caplog.text
    assert (tmp_path / "hparams.yaml").read_bytes() == hyperparameters
    for epochs in (2, 3):
        fit(**flags | {"resume": "auto", "max_epochs": epochs, "max_pictures": 1, "num_workers": 1})
    record = json.loads((tmp_path / "run.json").read_text())
    assert [later["started"] >= first["started"] for later in record.pop("resumed")] == [True, True]
    assert record == first


def test_a_training_that_cannot_go_on_does_not_say_that_it_does(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    flags = SHORT | {"loss": "own", "max_epochs": 1, "run_dir": str(tmp_path)}
    with monkeypatch.context() as patch:
        patch.setitem(LOSSES, "own", lambda logits, targets: LOSSES["mse"](logits, targets))
        fit(**flags)
        caplog.clear()
        fit(**flags | {"max_epochs": 2}, resume=str(tmp_path))
    said = [message.partition(", ")[0] for message in caplog.messages]
    assert said.count(f"resuming from {tmp_path}/checkpoints/last.ckpt") == 1
    caplog.clear()
    with pytest.raises(InputError, match="--loss 'own' is unknown"):
        fit(**flags | {"max_epochs": 3}, resume=str(tmp_path))
    assert caplog.messages == []


def test_the_time_of_a_resumed_training_is_said_to_be_that_since_it_was_resumed(tmp_path, caplog):
    caplog.set_level("INFO")
    flags = SHORT | {"run_dir": str(tmp_path), "resume": "auto"}
    for epochs in (1, 2):
        fit(**flags | {"max_epochs": epochs})
    first, resumed = (message for message in caplog.messages if message.startswith("time: "))
    assert re.fullmatch(r"time: .* of \d+ s", first)
    assert re.fullmatch(r"time: .* of \d+ s since it was resumed", resumed)


def test_a_training_that_has_ended_is_not_taken_for_one_that_never_began(tmp_path, caplog):
    flags = SHORT | {"run_dir": str(tmp_path), "max_epochs": 1, "resume": "auto"}
    fit(**flags)
    caplog.set_level("INFO")
    fit(**flags)
    assert "training had already ended" in caplog.text
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(InputError, match=r"holds a finished training run without its checkpoints/last\.ckpt"):
        fit(**flags)


def test_a_folder_without_a_training_is_named_as_it_was_given(tmp_path):
    with pytest.raises(InputError, match=f"--resume {tmp_path}: expected the last.ckpt of a training run, or its"):
        find_interrupted(resume=str(tmp_path))


def test_a_training_goes_on_as_it_was_decided_and_with_flags_in_any_form(tmp_path, monkeypatch):
    names = DEFAULT_HYPERPARAMETERS["keypoint_channels"].split()
    flags = SHORT | {"run_dir": str(tmp_path), "max_epochs": 1, "json_dataset_path": Path(SHORT["json_dataset_path"])}
    flags |= {"heatmap_sigma": "auto", "batch_size": "auto", "learning_rate": "auto", "keypoint_channels": names}
    flags |= {"backbone_type": "DilatedCnn", "dilations": (1, 2)}
    flags |= dict.fromkeys(("n_downsampling_layers", "n_resnet_blocks"))
    first = fit(**flags)
    choose = build.choose_recipe

    @functools.wraps(choose)
    def on_another_device(*arguments, **options):  # where auto would choose other values
        changed = {name: 7.0 for name in ("heatmap_sigma", "learning_rate") if options[name] == "auto"}
        return choose(*arguments, **options | changed | {"device": Device("cpu", fast_bf16=True)})

    monkeypatch.setattr(build, "choose_recipe", on_another_device)
    changed = {"keypoint_channels": "  ".join(names), "minimal_keypoint_extraction_pixel_distance": 5.0}
    second = fit(**flags | changed | {"resume": "auto", "max_epochs": 2})
    for name in ("heatmap_sigma", "learning_rate"):
        assert second.detector.hparams[name] == first.detector.hparams[name] != 7.0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["resumed"][0]["flags"]["precision"] == record["flags"]["precision"] == "32-true"


def test_a_job_that_a_cluster_starts_again_ends_as_one_that_was_never_interrupted(tmp_path, monkeypatch):
    for name, value in (("NTASKS", "1"), ("JOB_NAME", "boxes"), ("NODELIST", "localhost"), ("JOB_ID", "7")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    whole = fit(**SHORT, run_dir=str(tmp_path / "whole"))
    folder = tmp_path / "again"
    real = LossLogger.on_train_batch_end

    def stopped(self, trainer, *arguments):
        if trainer.current_epoch == 2:
            trainer.save_checkpoint(folder / "hpc_ckpt_1.ckpt")  # as Lightning does at SIGUSR1, before last.ckpt is due
            raise RuntimeError("stopped")
        real(self, trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LossLogger, "on_train_batch_end", stopped)
        with pytest.raises(RuntimeError, match="stopped"):
            fit(**SHORT | {"checkpoint_every_n_epochs": 100}, run_dir=str(folder))
    first = json.loads((folder / "run.json").read_text())
    again = fit(**SHORT, run_dir=str(folder))  # the same command
    record = json.loads((folder / "run.json").read_text())
    assert len(record.pop("resumed")) == 1
    assert record == first
    losses = [[float(loss) for loss in logged(path)["validation/loss"]] for path in (folder, whole.run_dir)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    saved = torch.load(again.best_checkpoint, weights_only=True)["state_dict"]
    for name, value in again.detector.state_dict().items():
        assert torch.equal(value.nan_to_num(7), saved[name].nan_to_num(7)), name
    with pytest.raises(InputError, match="already holds a training run"):
        fit(**SHORT, run_dir=str(folder))
