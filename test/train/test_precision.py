"""Networks in 16 bits: loss, heatmaps and metrics stay in 32, and a training goes the same way."""

import csv

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit
from keypoint_detection.models.detector import KeypointDetector

SHORT = DEFAULT_HYPERPARAMETERS | {
    "wandb_mode": "disabled", "max_epochs": 2, "max_pictures": 0, "image_size": "32", "augment_train": False,
}  # fmt: skip


def losses(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train/loss", "validation/loss") if row.get(name)]


def test_losses_agree_within_rounding_and_stay_in_32_bits(tmp_path, monkeypatch):
    seen = []
    step = KeypointDetector.validation_step

    def watch(self, batch, batch_idx=0):
        found = step(self, batch, batch_idx)
        seen.append(({name: value.dtype for name, value in found.items()}, self.backbone(batch.images).dtype))
        return found

    whole = fit(**SHORT, run_dir=str(tmp_path / "whole"), precision="32")
    monkeypatch.setattr(KeypointDetector, "validation_step", watch)
    half = fit(**SHORT, run_dir=str(tmp_path / "half"), precision="bf16-mixed")
    assert losses(half.run_dir) == pytest.approx(losses(whole.run_dir), rel=0.01)
    assert losses(half.run_dir) != losses(whole.run_dir)  # it was another precision
    for kinds, network in seen:
        assert network == torch.bfloat16
        assert {kinds[name] for name in ("losses", "gt_losses", "heatmaps", "scores")} == {torch.float32}
    assert all(value.dtype == torch.float32 for value in half.detector.parameters())


def test_the_other_optimizer_trains_in_16_bits(tmp_path):
    found = fit(**SHORT | {"max_epochs": 1, "optimizer": "adamw"}, run_dir=str(tmp_path), precision="bf16-mixed")
    assert found.best_checkpoint.exists()
