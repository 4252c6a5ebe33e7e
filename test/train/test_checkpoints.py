"""Which checkpoints a training keeps."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit
from keypoint_detection.train import train
from keypoint_detection.train.checkpoints import BestCheckpoint

# These make the mean AP rise above 0 within three epochs.
LEARNS_FAST = {"learning_rate": 0.1, "maximal_gt_keypoint_pixel_distances": "40 80"}


@pytest.mark.parametrize("ema_decay", [0.9, 0])
def test_the_best_checkpoints_are_kept_beside_the_best_and_the_last(tmp_path, monkeypatch, ema_decay):
    own = tmp_path / "own.ckpt"

    class SavesItself(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(own)

    build = train.build_callbacks
    monkeypatch.setattr(train, "build_callbacks", lambda *arguments: [*build(*arguments), SavesItself()])
    changes = {**LEARNS_FAST, "save_top_k": 2, "ap_epoch_start": 0, "max_epochs": 3, "wandb_mode": "disabled"}
    fit(**{**DEFAULT_HYPERPARAMETERS, **changes}, ema_decay=ema_decay, run_dir=str(tmp_path))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["validation/meanAP"]]
    scores = {int(row["epoch"]): float(row["validation/meanAP"]) for row in rows}
    assert list(scores) == [0, 1, 2]
    assert max(scores.values()) > min(scores.values())
    first, second, _ = sorted(scores, key=lambda epoch: -scores[epoch])  # of equal ones the earlier is kept
    folder = tmp_path / "checkpoints"
    best = {path.name: epoch for epoch in (first, second) for path in folder.glob(f"epoch{epoch:04d}-AP*.ckpt")}
    for name, epoch in best.items():
        assert float(name.split("-AP")[1].removesuffix(".ckpt")) == pytest.approx(scores[epoch], abs=1e-4)
    best["best.ckpt"] = max(epoch for epoch, score in scores.items() if score >= 0.99 * scores[first])
    assert len(best) == 3
    assert {path.name for path in folder.iterdir()} == {*best, "last.ckpt"}
    for name, epoch in {**best, "last.ckpt": 2}.items():
        assert torch.load(folder / name, weights_only=False)["epoch"] == epoch, name
    # These are for use; the last one, and any that others save, has what a training needs to go on.
    last = torch.load(folder / "last.ckpt", weights_only=True)
    state = {"optimizer_states", "lr_schedulers", "loops", "callbacks"}
    state |= {"current_model_state", "averaging_state"} if ema_decay else set()
    assert state <= last.keys()
    assert state <= torch.load(own, weights_only=True).keys()
    for name in best:
        checkpoint = torch.load(folder / name, weights_only=True)
        assert not state & checkpoint.keys(), name
        assert {"state_dict", "hyper_parameters", "validation_metrics"} <= checkpoint.keys(), name
        assert checkpoint["state_dict"].keys() == last["state_dict"].keys()


@pytest.mark.parametrize(("save_top_k", "epochs"), [(-1, [0, 1, 2]), (1, []), (0, [])])
def test_all_checkpoints_are_kept_or_none_beside_the_best_and_the_last(tmp_path, save_top_k, epochs):
    changes = {"ap_epoch_start": 0, "max_epochs": 3, "wandb_mode": "disabled", "max_pictures": 0}
    fit(**{**DEFAULT_HYPERPARAMETERS, **changes}, save_top_k=save_top_k, run_dir=str(tmp_path))
    names = sorted(path.name.split("-AP")[0] for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", *(f"epoch{epoch:04d}" for epoch in epochs), "last.ckpt"]


def test_of_checkpoints_that_are_as_good_as_the_best_the_latest_is_kept(tmp_path):
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
    best = BestCheckpoint(dirpath=tmp_path)
    kept = [best.check_monitor_top_k(trainer, torch.tensor(score)) for score in (0.5, 0.496, 0.49, 0.496)]
    assert kept == [True, True, False, True], "a hundredth below the highest of 0.5 is 0.495"
    resumed = BestCheckpoint(dirpath=tmp_path)
    resumed.load_state_dict(best.state_dict())
    kept = [resumed.check_monitor_top_k(trainer, torch.tensor(score)) for score in (0.494, 0.6, 0.595, 0.593)]
    assert kept == [False, True, True, False]
    older = BestCheckpoint(dirpath=tmp_path)
    older.load_state_dict({k: v for k, v in best.state_dict().items() if k != "highest"} | {"best_model_score": 0.5})
    assert not older.check_monitor_top_k(trainer, torch.tensor(0.4))


def test_without_a_true_keypoint_to_find_the_last_checkpoint_is_the_one_to_use(tmp_path):
    content = json.loads(Path(DEFAULT_HYPERPARAMETERS["json_dataset_path"]).read_text())
    names = DEFAULT_HYPERPARAMETERS["keypoint_channels"].split()
    empty = {"dataset": [entry | {name: [] for name in names} for entry in content["dataset"]]}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    images = DEFAULT_HYPERPARAMETERS["image_dataset_path"]
    validation = {"json_validation_dataset_path": str(tmp_path / "empty.json"), "image_validation_dataset_path": images}
    changes = {**validation, "ap_epoch_start": 0, "max_epochs": 3, "wandb_mode": "disabled", "save_top_k": 2}
    result = fit(**{**DEFAULT_HYPERPARAMETERS, **changes}, run_dir=str(tmp_path / "run"))
    assert result.best_checkpoint.name == "last.ckpt"
    assert [path.name for path in result.best_checkpoint.parent.iterdir()] == ["last.ckpt"]
    assert torch.load(result.best_checkpoint, weights_only=True)["epoch"] == 2
    assert result.table().splitlines()[0].endswith(": validation set, last checkpoint")
    assert "run: validation set, last checkpoint" in (result.run_dir / "report.html").read_text(encoding="utf-8")
