"""Which checkpoints a training keeps."""

import csv
from types import SimpleNamespace

import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit
from keypoint_detection.train.checkpoints import BestCheckpoint

# These make the mean AP rise above 0 within three epochs.
LEARNS_FAST = {"learning_rate": 0.1, "maximal_gt_keypoint_pixel_distances": "40 80"}


def test_the_best_checkpoints_are_kept_beside_the_best_and_the_last(tmp_path):
    changes = {**LEARNS_FAST, "save_top_k": 2, "ap_epoch_start": 0, "max_epochs": 3, "wandb_mode": "disabled"}
    fit(**{**DEFAULT_HYPERPARAMETERS, **changes}, run_dir=str(tmp_path))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["validation/meanAP"]]
    scores = {int(row["epoch"]): float(row["validation/meanAP"]) for row in rows}
    assert list(scores) == [0, 1, 2]
    assert max(scores.values()) > min(scores.values())
    first, second, _ = sorted(scores, key=lambda epoch: -scores[epoch])  # of equal ones the earlier is kept
    best = {f"epoch{epoch:04d}-AP{scores[epoch]:.4f}.ckpt": epoch for epoch in (first, second)}
    best["best.ckpt"] = max(epoch for epoch, score in scores.items() if score >= 0.99 * scores[first])
    folder = tmp_path / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {*best, "last.ckpt"}
    for name, epoch in {**best, "last.ckpt": 2}.items():
        assert torch.load(folder / name, weights_only=False)["epoch"] == epoch, name


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
