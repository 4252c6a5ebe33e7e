"""One short training, looked at from all sides, as the command line and Python start it."""

import csv
import gc
import json
import math
import os
import re
import subprocess
import sys
import time
import weakref
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from configuration import DEFAULT_HYPERPARAMETERS, TEST_DATASET
from PIL import Image
from wandb_offline import read_runs

from keypoint_detection import KeypointDetector, fit
from keypoint_detection.allocator import TRAINING
from keypoint_detection.cli import main
from keypoint_detection.data import image_cache
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.errors import InputError
from keypoint_detection.train import train as training
from keypoint_detection.train.flags import build_parser
from keypoint_detection.train.run_folder import RunFolder
from keypoint_detection.train.training_result import TrainingResult

ROOT = TEST_DATASET.parents[1]
CHANNELS = ["corner_keypoints", "flap_corner_keypoints"]
TESTED = {"json_test_dataset_path": DEFAULT_HYPERPARAMETERS["json_dataset_path"]}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return fit(**DEFAULT_HYPERPARAMETERS, **TESTED, run_dir=str(folder))


@pytest.fixture(scope="module")
def logged(result):
    (run,) = read_runs(result.run_dir / "wandb")
    return run


def test_the_run_folder_holds_what_is_promised(result):
    names = {str(path.relative_to(result.run_dir)) for path in result.run_dir.rglob("*") if path.is_file()}
    assert {
        "metrics.csv",
        "hparams.yaml",
        "split.json",
        "augmentations.jpg",
        "curves.png",
        "report.html",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    } <= names
    assert {f"pictures/validation_{kind}_epoch0000.jpg" for kind in ("heatmaps", "keypoints")} <= names
    assert {name[:-8] for name in names if name.startswith("pictures/best")} == {
        f"pictures/best_{kind}_epoch" for kind in ("heatmaps", "keypoints")
    }


def test_the_split_is_written_and_covers_every_image_once(result):
    split = json.loads((result.run_dir / "split.json").read_text())
    images = [entry["image_path"] for entry in json.loads((TEST_DATASET / "annotations.json").read_text())["dataset"]]
    assert sorted(split["train"] + split["validation"]) == sorted(images)
    assert len(split["validation"]) == 1
    saved = torch.load(result.best_checkpoint, weights_only=True)["evaluation"]
    assert saved["fingerprints"] == split["fingerprints"]
    assert saved["fingerprints"].keys() == {"train", "test"}


def test_checkpoints_know_their_training_images(result):
    split = json.loads((result.run_dir / "split.json").read_text())
    images = read_annotations(TEST_DATASET / "annotations.json", TEST_DATASET)
    for path in (result.best_checkpoint, result.run_dir / "checkpoints" / "last.ckpt"):
        record = torch.load(path, weights_only=True)["evaluation"]["trained_images"]
        trained, new = TrainedImages.from_record(record).recognise(images)
        assert {images.name(index) for index in np.flatnonzero(trained)} == set(split["train"])
        assert {images.name(index) for index in np.flatnonzero(new)} == set(split["validation"])


def test_hyperparameters_are_written_with_the_choices_of_auto(result):
    values = yaml.safe_load((result.run_dir / "hparams.yaml").read_text())
    assert values["n_channels"] == 4
    assert values["heatmap_stride"] in (1, 2, 4)
    assert values["batch_size"] == 2


def test_the_hyperparameters_of_a_run_with_a_configuration_file_are_one_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = DEFAULT_HYPERPARAMETERS | {"max_epochs": 1, "wandb_mode": "disabled", "max_pictures": 0}
    Path("flags.yaml").write_text(yaml.safe_dump(given))
    assert main(["train", "--config", "flags.yaml", "--run_dir", "run"]) == 0
    Path("flags.yaml").unlink()  # what it said is in the hyperparameters
    config = build_parser().parse_args(["--config", "run/hparams.yaml"])
    assert (config.max_epochs, config.max_pictures, config.n_channels) == (1, 0, given["n_channels"])


@pytest.mark.parametrize("stage", ["validation", "best", "test"])
def test_wandb_has_every_metric_of_every_channel(logged, stage):
    expected = {f"{stage}/loss", f"{stage}/gt_loss", f"{stage}/meanAP", f"{stage}/meanAP/d=2", f"{stage}/meanAP/d=4"}
    for channel in CHANNELS:
        expected |= {f"{stage}/loss/{channel}"} | {f"{stage}/AP/{channel}/d={d}" for d in (2, 4)}
        expected |= {
            f"{stage}/{kind}/{channel}" for kind in ("median_distance", "mean_distance", "recall", "precision")
        }
    assert expected <= logged.keys


def test_wandb_has_the_training_losses_and_the_learning_rate(logged):
    assert {"train/loss", "train/gt_loss", "learning_rate", *(f"train/loss/{name}" for name in CHANNELS)} <= logged.keys


def test_wandb_has_hyperparameters_pictures_and_the_checkpoint(logged, result):
    assert logged.config["learning_rate"] == 1e-3
    assert logged.config["keypoint_channels"] == DEFAULT_HYPERPARAMETERS["keypoint_channels"]
    assert logged.config["heatmap_stride"] in (1, 2, 4)
    # Of the first evaluation, and after the training of the best checkpoint; those between would have taken too long.
    for key in ("validation/heatmaps", "validation/keypoints", "best/heatmaps", "best/keypoints"):
        assert len(logged.pictures(key)) == 1
        assert all(path.stat().st_size > 1000 for path in logged.pictures(key))
    (artifact,) = logged.artifacts
    assert artifact.type == "model"
    assert {"best"} <= set(artifact.aliases)
    assert logged.exit_code == 0
    assert logged.project == "test-project"
    assert "report.html" in logged.files
    assert (logged.folder / "files" / "report.html").read_bytes() == (result.run_dir / "report.html").read_bytes()


def test_metrics_of_the_best_checkpoint_are_those_that_training_logged_for_it(result):
    with (result.run_dir / "metrics.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    rows = [row for row in logged if row["validation/meanAP"]]
    assert len(rows) == 2
    epoch = torch.load(result.best_checkpoint, weights_only=True)["epoch"]
    assert [int(row["epoch"]) for row in logged if row["best/meanAP"] or row["test/meanAP"]] == [epoch, epoch]
    assert result.metrics["best/meanAP"] == pytest.approx(
        max(float(row["validation/meanAP"]) for row in rows), abs=1e-6
    )
    losses = [float(row["validation/loss"]) for row in rows]
    assert any(result.metrics["best/loss"] == pytest.approx(loss, rel=1e-5) for loss in losses)


def test_a_result_keeps_no_images_in_memory(tmp_path, monkeypatch):
    caches = []

    class Cache(image_cache.ImageCache):
        def __init__(self, *args):
            super().__init__(*args)
            caches.append(weakref.ref(self))

    monkeypatch.setattr(image_cache, "ImageCache", Cache)
    result = fit(**DEFAULT_HYPERPARAMETERS, run_dir=str(tmp_path))
    gc.collect()
    assert [cache() for cache in caches] == [None, None]  # of training and validation images
    assert not result.detector.training


def test_the_checkpoint_loads_alone_and_predicts_what_the_result_predicts(result):
    detector = KeypointDetector.load_from_checkpoint(result.best_checkpoint)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(detector.eval()(images), result.detector.eval()(images))
    assert list(detector.hparams.keypoint_channels) == CHANNELS


def test_the_table_has_a_line_per_channel_and_a_dash_for_what_is_undefined(result):
    result.metrics["test/AP/corner_keypoints/d=2"] = float("nan")
    assert result.origin in {f"best.ckpt: the weights after {epochs} of 2 epochs" for epochs in (1, 2)}
    lines = result.table().splitlines()
    assert sum(line.startswith("flap_corner_keypoints ") for line in lines) == 2
    assert "-" in next(line for line in lines[-5:] if line.startswith("corner_keypoints ")).split()


@pytest.mark.parametrize(
    ("unit", "title", "error"),
    [("pixel", "at pixel distances, and median error of detections within 4 px", "0.01 px"),
     ("image", "at fractions of the image's diagonal, and median error of detections within 4", "0.0123")],
)  # fmt: skip
def test_the_table_names_the_unit_of_its_distances(result, unit, title, error):
    metrics = {**result.metrics, "best/median_distance": 0.0123}
    lines = replace(result, metrics=metrics, threshold_unit=unit).table().splitlines()
    assert lines[0] == f"Average precision {title}: validation set, best checkpoint, mean AP 0.000"
    mean = next(line for line in lines if line.startswith("mean "))
    assert mean.endswith(f" {error}")


def test_columns_of_the_table_stand_where_a_terminal_shows_them_whatever_the_letters():
    detector = Namespace(hparams=Namespace(keypoint_channels=["nose", "頭"]))
    metrics = {"test/meanAP": 0.5, **{f"test/AP/{name}/d=2": 0.25 for name in ("nose", "頭")}}
    lines = TrainingResult(detector, Path(), Path(), metrics, [2.0], "pixel").table().splitlines()
    assert lines[3:5] == ["nose   0.250              -", "頭     0.250              -"]


def test_the_same_seed_gives_the_same_weights(tmp_path):
    short = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_epochs": 1, "max_pictures": 0}
    first, second, other = (
        fit(**short | {"seed": seed}, run_dir=str(tmp_path / name)).detector.state_dict()
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(first[name], second[name]) for name in first if name != "score_thresholds")
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_freed_memory_is_kept_while_a_cpu_trains(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "keep_freed_memory", lambda *limits: calls.append(limits))
    monkeypatch.setattr(training, "give_back_freed_memory", lambda: calls.append("given back"))
    short = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_epochs": 1, "max_pictures": 0}
    fit(**short, run_dir=str(tmp_path / "run"))
    assert calls == [TRAINING, "given back"]


@pytest.mark.parametrize(
    ("program", "folder"),
    [
        (["keypoint_detection/train/train.py"], ROOT),
        (["train.py"], ROOT / "keypoint_detection" / "train"),
        (["-m", "keypoint_detection.cli", "train"], ROOT),
    ],
)
def test_the_three_ways_to_start_a_training_are_one(program, folder, tmp_path):
    flags = [f"--{name}={value}" for name, value in DEFAULT_HYPERPARAMETERS.items()]
    flags += [f"--run_dir={tmp_path}", "--wandb_mode=disabled", "--max_epochs=1", "--enable_progress_bar=False"]
    done = subprocess.run(
        [sys.executable, *program, *flags], cwd=folder, capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "AP@2" in done.stdout
    assert str(tmp_path) in done.stdout
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_channels_may_have_names_that_the_locale_has_no_letters_for(tmp_path):
    content = json.loads((TEST_DATASET / "annotations.json").read_text())
    for entry in content["dataset"]:
        entry["Füße"], entry["角"] = entry.pop("corner_keypoints"), entry.pop("flap_corner_keypoints")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    changes = {"keypoint_channels": None, "json_dataset_path": labels, "wandb_mode": "disabled", "max_epochs": 1}
    flags = {**DEFAULT_HYPERPARAMETERS, **changes, "run_dir": tmp_path / "run"}
    done = subprocess.run(
        [sys.executable, "-m", "keypoint_detection.cli", "train", *(f"--{n}={v}" for n, v in flags.items() if v)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "F\\xfc\\xdfe" in done.stdout
    with (tmp_path / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"validation/loss/Füße", "validation/loss/角"} <= rows[0].keys()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"json_dataset_path": "missing.json"}, "missing.json"),
        ({"keypoint_channels": "corner_keypoint"}, "corner_keypoints"),
        ({"backbone_type": "Unett"}, "Unett"),
        ({"loss": "hinge"}, "hinge"),
        ({"maximal_gt_keypoint_pixel_distances": "2 -4"}, "maximal_gt_keypoint_pixel_distances"),
        ({"max_time": "5 minutes"}, "max_time"),
        ({"heatmap_sigma": -1}, "heatmap_sigma"),
        ({"strategy": "ddp_spawn", "devices": 2}, "--strategy ddp_spawn: expected"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"no_such_flag": 1}, "no_such_flag"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(changes, named, tmp_path, capsys):
    flags = DEFAULT_HYPERPARAMETERS | changes
    code = main(["train", *(f"--{name}={value}" for name, value in flags.items()), f"--run_dir={tmp_path / 'run'}"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2
    assert error.startswith("error: ")
    assert named in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"backbone_type": "Unett"}, "Unett"),
        ({"n_channels": 1}, "n_channels"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"bce_keypoint_weight": -1.0}, "bce_keypoint_weight is -1"),
        ({"loss": "focal", "focal_alpha": 0.5}, "focal_alpha is 0.5"),
    ],
)
def test_flags_of_the_detector_are_checked_before_the_data_is_read(changes, named):
    flags = DEFAULT_HYPERPARAMETERS | {"json_dataset_path": "missing.json"} | changes
    with pytest.raises(InputError, match=named):
        fit(**flags)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0}, {"batch_size": -3}, {"learning_rate": 0.0}, {"heatmap_sigma": 0}, {"image_size": "x"},
        {"image_size": 0}, {"train_crop_size": "1 2 3"}, {"rotation": 181}, {"horizontal_flip": 1.5}, {"fill": "red"},
        {"scale": -1}, {"augmented_share": 1.1}, {"progressive_resizing": -0.1}, {"ema_decay": 1.0},
        {"ap_epoch_freq": 0}, {"checkpoint_every_n_epochs": 0}, {"validation_split_ratio": 1.0}, {"num_workers": -1},
        {"save_top_k": -2}, {"json_dataset_path": ""}, {"image_test_dataset_path": ""}, {"run_dir": ""}, {"resume": ""},
        {"checkpoint": ""},
    ],
)  # fmt: skip
def test_values_that_are_wrong_by_themselves_are_told_before_anything_is_read_or_chosen(changes, caplog):
    usual = {"batch_size": "auto", "image_size": "auto", "heatmap_sigma": "auto", "learning_rate": "auto"}
    flags = DEFAULT_HYPERPARAMETERS | usual | {"json_dataset_path": "missing.json"} | changes
    with caplog.at_level("INFO"), pytest.raises(InputError, match=next(iter(changes))):
        fit(**flags)
    assert not caplog.records


def test_a_flag_of_another_backbone_is_said_to_have_no_effect(caplog):
    flags = DEFAULT_HYPERPARAMETERS | {"json_dataset_path": "missing.json", "dilations": [1, 2]}
    with pytest.raises(InputError, match=r"missing\.json"):
        fit(**flags)
    assert "--dilations has no effect: Unet does not take it" in caplog.text


def test_the_size_of_the_network_is_said_in_the_place_of_a_table(tmp_path, caplog):
    flags = DEFAULT_HYPERPARAMETERS | {"max_epochs": 1, "wandb_mode": "disabled"}
    with caplog.at_level("INFO"):
        detector = fit(**flags, run_dir=str(tmp_path)).detector
    (said,) = re.findall(r"network: (\S+) parameters", caplog.text)
    assert int(said.replace(",", "")) == sum(p.numel() for p in detector.parameters())
    assert "FLOPs" not in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_epochs": 0}, "--max_epochs 0: expected at least 1"),
        ({"max_steps": -2}, "--max_steps -2: expected at least 1"),
        ({"min_epochs": 3}, "--min_epochs 3: expected at most 2, the value of --max_epochs"),
        ({"min_steps": 8, "max_steps": 7}, "--min_steps 8: expected at most 7, the value of --max_steps"),
        ({"limit_train_batches": 0.0}, "--limit_train_batches 0.0: expected more than 0"),
        ({"limit_train_batches": 0.001}, "--limit_train_batches 0.001: expected at least one batch out of 2 per"),
        ({"overfit_batches": 0.4}, "--overfit_batches 0.4: expected at least one batch out of 2 per epoch"),
        ({"overfit_batches": 0.5}, "--overfit_batches 0.5: expected at least one batch out of 1 in the validation set"),
        ({"limit_val_batches": 0.9}, "--limit_val_batches 0.9: expected at least one batch out of 1 in the validation"),
        (TESTED | {"limit_test_batches": 0.4}, "--limit_test_batches 0.4: expected at least one batch out of 1 in the"),
        ({"accumulate_grad_batches": 0}, "--accumulate_grad_batches 0: expected more than 0"),
        ({"check_val_every_n_epoch": 0}, "--check_val_every_n_epoch 0: expected more than 0"),
        ({"val_check_interval": 0}, "--val_check_interval 0: expected more than 0"),
        ({"val_check_interval": math.nan}, "--val_check_interval nan: expected more than 0"),
        ({"gradient_clip_val": math.nan}, "--gradient_clip_val nan: expected at least 0, or none"),
        ({"gradient_clip_val": -0.5}, "--gradient_clip_val -0.5: expected at least 0, or none"),
        ({"max_time": "00:00:00:00"}, "--max_time 00:00:00:00: expected more than 0 seconds"),
        ({"max_time": "1000000000:00:00:00"}, "--max_time 1000000000:00:00:00: expected less than 1000000000 days"),
        ({"max_time": "0:0:0:" + "9" * 20}, "--max_time 0:0:0:9{20}: expected less than 1000000000 days"),
        ({"heatmap_sigma": 1e-19}, r"heatmap_sigma is 1e-19, expected 1e-18 to 1e\+18"),
        ({"accelerator": "mps"}, "--accelerator mps: not on this machine, expected auto or cpu"),
        ({"devices": "3x"}, "--devices 3x: expected auto, a number of at least 1, or a list such as 0,1"),
        ({"devices": "0"}, "--devices 0: expected auto, a number"),
        ({"precision": "bf16-true"}, "--precision bf16-true: expected one of 32, bf16-mixed, 16-mixed"),
        ({"seed": -1}, "--seed -1: expected a whole number from 0"),
        ({"strategy": "ddp_spawn"}, "--strategy ddp_spawn: expected one of auto, ddp, ddp_find"),
        ({"threshold_unit": "image"}, "_distances '.*': expected fractions of the image's diagonal"),
        ({"strategy": "no such"}, "--strategy no such: expected one of auto, ddp"),
    ],
)
def test_a_training_that_cannot_be_is_refused_and_leaves_nothing_behind(tmp_path, flags, message):
    with pytest.raises(InputError, match=message) as error:
        fit(**DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled"} | flags, run_dir=str(tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("others", [False, True])
def test_a_training_that_is_refused_leaves_no_folder_that_was_chosen_for_it(others, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if others:
        Path("runs/another").mkdir(parents=True)
    with pytest.raises(InputError, match="--val_check_interval 1000: expected at most 2"):
        fit(**DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "val_check_interval": 1000})
    assert [path.name for path in tmp_path.rglob("*")] == (["runs", "another"] if others else [])


@pytest.mark.parametrize("flags", [{"limit_train_batches": 1}, {"accumulate_grad_batches": 2}])
def test_losses_are_logged_at_least_once_in_the_steps_that_an_epoch_has(tmp_path, recwarn, flags):
    fit(**DEFAULT_HYPERPARAMETERS | {"max_epochs": 2, "wandb_mode": "disabled"} | flags, run_dir=str(tmp_path))
    assert not [warning for warning in recwarn if "logging interval" in str(warning.message)]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss_step"]]
    assert steps == [0, 1]


def test_as_many_keypoints_are_decoded_as_images_hold(tmp_path):
    points = [[12.0 + 20 * (number % 6), 12.0 + 20 * (number // 6)] for number in range(24)]
    entries = [{"image_path": f"{number}.png", "many": points} for number in range(4)]
    for entry in entries:
        Image.new("RGB", (128, 96)).save(tmp_path / entry["image_path"])
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    flags = {"json_dataset_path": str(path), "max_epochs": 1, "wandb_mode": "disabled", "image_size": "128"}
    flags |= {"max_pictures": 0, "num_workers": 0}
    detector = fit(**flags, run_dir=str(tmp_path / "run")).detector
    assert detector.hparams.max_keypoints == 36
    capped = fit(**flags, keypoint_channel_max_keypoints="30", run_dir=str(tmp_path / "capped")).detector
    assert (capped.hparams.max_keypoints, capped.hparams.keypoint_channel_max_keypoints) == (20, [30])
    asked = fit(**flags, max_keypoints=7, run_dir=str(tmp_path / "asked")).detector
    assert asked.hparams.max_keypoints == 7
    assert detector.detect(torch.rand(1, 3, 96, 128)).xy.shape == (1, 1, 36, 2)


def test_lightning_predicts_with_the_detector_and_its_data(result):
    module = KeypointsDataModule(TEST_DATASET / "annotations.json", batch_size=2, heatmap_sigma=2.0, heatmap_stride=4)
    detector = KeypointDetector.load_from_checkpoint(result.best_checkpoint)
    detector.head.bias.data += 4  # peaks that are found after so few steps
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (found,) = trainer.predict(detector, datamodule=module)
    with torch.inference_mode():
        (validated,) = (detector.eval().validation_step(batch) for batch in module.val_dataloader())
    assert found["indices"].tolist() == [0]
    assert (found["scores"] > 0.01).any()
    for name in ("xy", "scores"):
        torch.testing.assert_close(found[name], validated[name], rtol=0, atol=0, equal_nan=True)


def test_an_unwritable_run_folder_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="run_dir"):
        fit(**DEFAULT_HYPERPARAMETERS, run_dir=str(tmp_path / "file" / "run"))


def test_a_folder_that_holds_a_training_is_not_overwritten(result):
    before = {path: path.read_bytes() for path in result.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"already holds a training run .* resume that run with its flags and --re"):
        fit(**DEFAULT_HYPERPARAMETERS | {"json_dataset_path": "not read before"}, run_dir=str(result.run_dir))
    assert before == {path: path.read_bytes() for path in result.run_dir.rglob("*") if path.is_file()}


def test_trainings_that_choose_a_folder_in_the_same_second_choose_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "2026-01-02_03-04-05")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder.choose(name="my run").path, range(8)))
    base = "2026-01-02_03-04-05-my-run"
    assert {path.name for path in folders} == {base, *(f"{base}-{number}" for number in range(2, 9))}


def test_a_folder_that_cannot_be_made_is_told_of_where_it_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("no folder")
    with pytest.raises(InputError, match=r"--run_dir runs/.*: cannot be written there"):
        RunFolder.choose().make()


def test_any_checkpoint_makes_a_folder_a_used_one(tmp_path):
    folder = RunFolder(tmp_path)
    folder.make()
    folder.refuse_used()
    (folder.checkpoints / "last.ckpt").touch()
    with pytest.raises(InputError, match=r"last\.ckpt.*--resume"):
        folder.refuse_used()
    (folder.checkpoints / "last.ckpt").rename(folder.checkpoints / "best.ckpt")
    with pytest.raises(InputError, match=r"expected a new folder$"):
        folder.refuse_used()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])  # of torchrun, and of srun
def test_processes_that_are_started_at_once_have_to_be_given_a_folder(variable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "2")
    with pytest.raises(InputError, match="--run_dir: expected a folder, because each process would choose a "):
        RunFolder.choose()
    assert RunFolder.choose("given").path == Path("given")
    monkeypatch.setenv(variable, "1")
    assert RunFolder.choose(name="a b").path.name.endswith("-a-b")


def test_run_json_says_where_the_run_came_from(result):
    record = json.loads((result.run_dir / "run.json").read_text())
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert len(record["data"]["train"]) == 64
    assert "heatmap_stride" in record["chosen"]
    assert Path(record["folder"]).exists()


@pytest.mark.parametrize("meaning", ["absent", "ignore"])
def test_labels_without_any_keypoint_cannot_be_learnt_and_leave_no_folder_behind(tmp_path, meaning):
    (tmp_path / "labels.json").write_text(
        json.dumps({"dataset": [{"image_path": f"{i}.png", "a": []} for i in range(4)]})
    )
    for index in range(4):
        Image.new("L", (32, 32)).save(tmp_path / f"{index}.png")
    with pytest.raises(InputError, match="no training image has any keypoint, expected at least one to learn from"):
        fit(json_dataset_path=str(tmp_path / "labels.json"), empty_channels=meaning, run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_fit_takes_numpy_s_numbers_as_python_s_own(monkeypatch):
    monkeypatch.setattr(training, "train", lambda config: config)
    config = fit(
        json_dataset_path=Path("labels.json"), max_epochs=np.int64(3), learning_rate=np.float32(0.25),
        augment_train=np.bool_(False), image_size=[np.int64(64), np.int64(96)],
        maximal_gt_keypoint_pixel_distances=np.array([2, 4.5]),
    )  # fmt: skip
    expected = {"json_dataset_path": "labels.json", "max_epochs": 3, "learning_rate": 0.25, "augment_train": False}
    expected |= {"image_size": [64, 96], "maximal_gt_keypoint_pixel_distances": [2.0, 4.5]}
    taken = {name: config[name] for name in expected}
    assert taken == expected
    json.dumps(taken)  # as run.json and the checkpoint hold them


def test_fit_names_numpy_s_numbers_that_are_wrong():
    with pytest.raises(InputError, match=r"^--max_epochs 2\.5: expected a whole number or none$"):
        fit(json_dataset_path="labels.json", max_epochs=np.float64(2.5))


@contextmanager
def double_numbers():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_training_is_the_same_whatever_the_caller_has_set_in_torch(tmp_path):
    short = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_epochs": 1, "max_pictures": 0, "image_size": "32"}
    expected = fit(**short, run_dir=tmp_path / "plain").detector.state_dict()
    settings = {"gradients": torch.no_grad(), "inference": torch.inference_mode(), "double": double_numbers()}
    for name, setting in settings.items():
        with setting:
            found = fit(**short, run_dir=tmp_path / name).detector.state_dict()
            assert torch.is_grad_enabled() == (name == "double")
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=0, equal_nan=True, msg=f"{name}: {key}")
