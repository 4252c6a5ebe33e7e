"""The weights that a fine-tuning starts from, as the first of its evaluations."""

import csv
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit
from keypoint_detection.train import train
from keypoint_detection.train.evaluation_row import EvaluationRow
from keypoint_detection.train.start_evaluation import StartEvaluation

SHORT = DEFAULT_HYPERPARAMETERS | {
    "wandb_mode": "disabled",
    "max_pictures": 1,
    "maximal_gt_keypoint_pixel_distances": "40 80",
    "max_epochs": 3,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training on few images that has learnt a little."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = fit(**SHORT | {"learning_rate": 0.1}, run_dir=str(folder))
    assert result.metrics["best/meanAP"] > 0
    return result


@pytest.fixture
def spoiled(monkeypatch):
    """Makes every step of a training end with weights that find nothing."""

    class Spoils(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            with torch.no_grad():
                pl_module.head.weight.zero_()
                pl_module.head.bias.fill_(-9)

    build = train.build_callbacks
    monkeypatch.setattr(train, "build_callbacks", lambda *arguments: [Spoils(), *build(*arguments)])


def evaluations(folder):
    """Epoch, step and mean AP of each evaluation of a training."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["validation/meanAP"]]
    return [(int(row["epoch"]), int(row["step"]), float(row["validation/meanAP"])) for row in rows]


def load(folder, name):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


@pytest.mark.parametrize("ema_decay", [0.9, 0])
def test_where_nothing_better_comes_the_best_are_the_weights_as_they_were(
    tmp_path, trained, spoiled, caplog, ema_decay
):
    caplog.set_level(logging.INFO, "keypoint_detection")
    source = trained.best_checkpoint
    changes = {"checkpoint": str(source), "ema_decay": ema_decay, "save_top_k": 2, "ap_epoch_start": 2}
    result = fit(**SHORT | changes, run_dir=str(tmp_path))
    (*start, mean_ap), *others = evaluations(tmp_path)
    # It is evaluated as the first training has done at its end, on the same images.
    assert start == [-1, 0]
    assert mean_ap == pytest.approx(trained.metrics["best/meanAP"], abs=1e-6)
    assert f"the weights of --checkpoint have a mean AP of {mean_ap:.3f} before training" in caplog.text
    # Two steps an epoch; the first epoch has no AP, as asked.
    assert [(epoch, step) for epoch, step, _ in others] == [(1, 3), (2, 5)]
    assert max(ap for *_, ap in others) < 0.9 * mean_ap
    best, before = load(tmp_path, "best.ckpt"), torch.load(source, weights_only=True)
    assert (best["epoch"], best["global_step"]) == (-1, 0)
    assert load(tmp_path, "last.ckpt")["epoch"] == 2
    for name, value in before["state_dict"].items():
        if name != "score_thresholds":
            assert torch.equal(value, best["state_dict"][name]), name
    assert torch.allclose(best["state_dict"]["score_thresholds"], before["state_dict"]["score_thresholds"], atol=1e-6)
    assert result.metrics["best/meanAP"] == pytest.approx(mean_ap, abs=1e-6)
    assert result.origin == f"best.ckpt: the unchanged weights of --checkpoint, with a mean AP of {mean_ap:.3f}"
    assert "no evaluation during training (of 2) was as good as the weights of --checkpoint" in caplog.text
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"validation_keypoints_start.jpg", "best_keypoints_start.jpg"} <= names
    # Beside it are the best of the epochs.
    kept = {path.name.split("-")[0] for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"best.ckpt", "last.ckpt", "epoch0001", "epoch0002"}


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        # The second loss is never a thousandth of the first one.
        ({"early_stopping_relative_threshold": 0.999, "early_stopping_patience": 1}, [0, 1]),
        # The loss before the first step is not one of the epochs that a plateau waits for.
        ({"learning_rate_schedule": "plateau", "check_val_every_n_epoch": 3, "max_epochs": 6}, [2, 5]),
    ],
)
def test_it_changes_nothing_of_the_training(tmp_path, trained, monkeypatch, changes, epochs):
    flags = SHORT | {"checkpoint": str(trained.best_checkpoint)} | changes
    fit(**flags, run_dir=str(tmp_path / "with"))
    monkeypatch.setattr(StartEvaluation, "on_train_epoch_start", lambda *_: None)
    fit(**flags, run_dir=str(tmp_path / "without"))
    with_it, without = (evaluations(tmp_path / name) for name in ("with", "without"))
    assert with_it[1:] == without
    assert [epoch for epoch, *_ in without] == epochs
    ends = [load(tmp_path / name, "last.ckpt") for name in ("with", "without")]
    for part in ("state_dict", "current_model_state"):
        for name, value in ends[0][part].items():
            torch.testing.assert_close(value, ends[1][part][name], rtol=0, atol=0, equal_nan=True, msg=name)
    for progress in (lambda end: end["callbacks"]["RelativeEarlyStopping"], lambda end: end["lr_schedulers"]):
        assert progress(ends[0]) == progress(ends[1])


def test_a_training_that_goes_on_does_not_repeat_it_and_still_knows_of_it(tmp_path, trained, spoiled):
    flags = SHORT | {"checkpoint": str(trained.best_checkpoint), "run_dir": str(tmp_path), "resume": "auto"}
    fit(**flags)
    fit(**flags | {"max_epochs": 4})
    assert [epoch for epoch, *_ in evaluations(tmp_path)] == [-1, 0, 1, 2, 3]
    assert load(tmp_path, "best.ckpt")["global_step"] == 0


def test_weights_that_do_not_know_a_channel_tell_nothing_before_it_is_learnt(tmp_path, trained):
    content = torch.load(trained.best_checkpoint, weights_only=True)
    content["hyper_parameters"]["keypoint_channels"] = ["corner_keypoints", "nose"]
    torch.save(content, tmp_path / "other.ckpt")
    fit(**SHORT | {"checkpoint": str(tmp_path / "other.ckpt")}, run_dir=str(tmp_path / "run"))
    assert [epoch for epoch, *_ in evaluations(tmp_path / "run")] == [0, 1, 2]


@pytest.mark.parametrize("changes", [{"limit_val_batches": 0}, {"fast_dev_run": True}])
def test_a_training_without_evaluations_begins_without_one(tmp_path, trained, changes):
    result = fit(**SHORT | {"checkpoint": str(trained.best_checkpoint)} | changes, run_dir=str(tmp_path))
    assert result.best_checkpoint.name == "last.ckpt"


def test_a_training_draws_the_same_numbers_as_without_it():
    drawn = []
    loop = SimpleNamespace(run=lambda: drawn.extend(numbers()))
    trainer = SimpleNamespace(
        global_step=0, is_global_zero=True, callback_metrics={},
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(val_loop=loop)),
    )  # fmt: skip

    def numbers():
        return float(torch.rand(())), float(np.random.rand()), random.random()

    pl.seed_everything(3, verbose=False)
    expected = numbers()
    pl.seed_everything(3, verbose=False)
    StartEvaluation(EvaluationRow()).on_train_epoch_start(trainer, None)
    assert tuple(drawn) == numbers() == expected
