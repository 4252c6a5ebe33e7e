"""What is logged of an evaluation, from batches worked out by hand."""

import csv
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit
from keypoint_detection.batch import Batch
from keypoint_detection.train import train
from keypoint_detection.train.callbacks import ChannelMeans, LossLogger, MetricsLogger
from keypoint_detection.train.evaluation_row import EvaluationRow

SPLIT = {"seed": 0, "fingerprints": {"train": "abc"}, "train": ["0.png"], "validation": ["1.png"]}
TRAINER = SimpleNamespace(datamodule=SimpleNamespace(keypoint_channels="a=x=y", empty_channels="ignore", split=SPLIT))


def test_distances_may_be_fractions_of_the_diagonal_of_each_image():
    metrics = MetricsLogger(EvaluationRow(), ["a"], "0.05", threshold_unit="image")
    truths = torch.tensor([[[[20.0, 20.0]]], [[[200.0, 200.0]]]])
    off = torch.tensor([4.0, 20.0])  # 0.08 of the first image's diagonal, and 0.04 of the second one's
    outputs = {
        "xy": truths + torch.stack([off, torch.zeros(2)], 1)[:, None, None],
        "scores": torch.tensor([[[0.9]], [[0.8]]]),
    }
    batch = Batch(
        images=torch.zeros(2, 3, 1, 1),
        keypoints=truths,
        heatmaps=None,
        sizes=torch.tensor([[30, 40], [300, 400]]),  # diagonals of 50 and 500
        transforms=torch.eye(3, dtype=torch.float64).repeat(2, 1, 1),
        labelled=torch.ones(2, 1, dtype=torch.bool),
        indices=torch.arange(2),
    )
    metrics._update("validation", outputs, batch)
    found = {key: value for metric in metrics.metrics["validation"].values() for key, value in metric.compute().items()}
    assert found["meanAP"] == pytest.approx(0.25)  # one of two keypoints is found, behind a false detection
    assert found["median_distance"] == pytest.approx(0.04)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_progress_bar_is_given_the_loss_of_each_batch(monkeypatch, tmp_path, accumulated):
    shown, computed = [], []

    class Bar(pl.Callback):  # comes last, as bars do
        def on_train_batch_end(self, trainer, pl_module, outputs, *others):
            shown.append(trainer.progress_bar_metrics["train/loss_step"])
            computed.append(float(outputs["losses"].mean()))

    build = train.build_callbacks
    monkeypatch.setattr(train, "build_callbacks", lambda *arguments: [*build(*arguments), Bar()])
    values = {"wandb_mode": "disabled", "max_pictures": 0, "accumulate_grad_batches": accumulated}
    fit(**DEFAULT_HYPERPARAMETERS | values, run_dir=str(tmp_path))
    assert len(shown) == 4
    assert shown == pytest.approx(computed)


def test_a_loaded_checkpoint_keeps_its_thresholds_and_metrics_until_the_next_validation():
    metrics = MetricsLogger(EvaluationRow(), ["a", "b"])
    state = {"score_thresholds": torch.tensor([0.25, 0.75])}
    metrics.on_load_checkpoint(None, None, {"state_dict": state, "validation_metrics": {"meanAP": 0.5}})
    saved = {"state_dict": {"score_thresholds": torch.tensor([0.5, 0.5])}}
    metrics.on_save_checkpoint(TRAINER, None, saved)
    assert saved["state_dict"]["score_thresholds"].tolist() == [0.25, 0.75]
    assert saved["validation_metrics"] == {"meanAP": 0.5}


def test_the_mean_loss_counts_the_last_cell_of_a_long_epoch():
    means = ChannelMeans(1)
    means.update(torch.zeros(1), torch.zeros(1), torch.tensor([2**24]))  # from where on a float32 has no odd numbers
    for _ in range(500):
        means.update(torch.ones(1), torch.zeros(1), torch.tensor([1]))
    assert float(means.compute()[0]) == pytest.approx(500 / (2**24 + 500), rel=1e-6)


def test_thresholds_of_other_channels_are_not_taken_over():
    metrics = MetricsLogger(EvaluationRow(), ["a"])
    metrics.on_load_checkpoint(None, None, {"state_dict": {"score_thresholds": torch.tensor([0.25, 0.75])}})
    saved = {"state_dict": {"score_thresholds": torch.tensor([0.5])}}
    metrics.on_save_checkpoint(TRAINER, None, saved)
    assert saved["state_dict"]["score_thresholds"].tolist() == [0.5]
    assert saved["evaluation"] == {
        "channel_members": {"a": ["a", "x", "y"]}, "empty_channels": "ignore", "distances": [2.0, 4.0],
        "threshold_unit": "pixel", "fingerprints": {"train": "abc"},
    }  # fmt: skip


def test_a_resumed_checkpoint_keeps_its_training_images_without_reading_their_files():
    metrics = MetricsLogger(EvaluationRow(), ["a"])
    record = {"digests": "0123456789abcdef", "below": "g"}
    metrics.on_load_checkpoint(None, None, {"state_dict": {}, "evaluation": {"trained_images": record}})
    metrics.on_fit_start(SimpleNamespace(is_global_zero=True), None)  # without data
    saved = {"state_dict": {}}
    metrics.on_save_checkpoint(TRAINER, None, saved)
    assert saved["evaluation"]["trained_images"] == record


def trainer_in_epoch(epoch):
    """What the logger asks a trainer for in a run of a thousand epochs with an interval of validations in time."""
    return SimpleNamespace(
        sanity_checking=False, state=SimpleNamespace(fn="fit"), current_epoch=epoch, callbacks=[], val_check_batch=None,
        max_epochs=1000, max_steps=-1, global_step=epoch, should_stop=False,
    )  # fmt: skip


def test_an_evaluation_that_is_due_waits_while_the_run_is_interrupted():
    metrics = MetricsLogger(EvaluationRow(), ["a"], ap_epoch_start=0, ap_epoch_freq=10)
    metrics.on_validation_end(trainer_in_epoch(8), None)
    resumed = MetricsLogger(EvaluationRow(), ["a"], ap_epoch_start=0, ap_epoch_freq=10)
    resumed.load_state_dict(metrics.state_dict())
    assert resumed.evaluates(trainer_in_epoch(15))  # epoch 9, counted from 0, was due
    resumed.on_validation_end(trainer_in_epoch(15), None)
    assert not resumed.evaluates(trainer_in_epoch(17))
    assert resumed.evaluates(trainer_in_epoch(19))


def test_the_evaluation_before_the_first_step_does_not_take_the_place_of_the_first_one():
    row = EvaluationRow()
    metrics = MetricsLogger(row, ["a"], ap_epoch_start=1, ap_epoch_freq=10)
    row.checkpoint_epoch = -1
    metrics.on_validation_end(trainer_in_epoch(0), None)
    row.checkpoint_epoch = None
    assert metrics.evaluates(trainer_in_epoch(1))


def test_the_sums_that_a_checkpoint_before_the_first_step_gathers_lie_where_the_network_does(monkeypatch):
    losses = LossLogger(EvaluationRow(), ["a"])
    gathered = []

    def gather(value, group):  # which NCCL does of tensors on GPUs alone
        gathered.append(value.device.type)
        return [value, value]

    monkeypatch.setattr("torchmetrics.metric.gather_all_tensors", gather)
    monkeypatch.setattr(losses.means["train"], "distributed_available_fn", lambda: True)
    losses.on_train_start(None, SimpleNamespace(device=torch.device("meta")))
    losses.state_dict()
    assert gathered == ["meta"] * 3


def test_means_are_over_cells_and_not_over_batches():
    means = ChannelMeans(2)
    means.update(torch.tensor([1.0, 5.0]), torch.tensor([0.5, 1.0]), torch.tensor([30, 0]))
    means.update(torch.tensor([2.0, 4.0]), torch.tensor([0.25, 2.0]), torch.tensor([10, 20]))
    losses, entropies = means.compute()
    assert losses.tolist() == [1.25, 4.0]
    assert entropies.tolist() == [0.4375, 2.0]


@pytest.mark.parametrize("backbone_type", ["Unet", "S3K", "DilatedCnn"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_learning_rate_is_logged_as_its_flag_says_it(tmp_path, backbone_type, optimizer):
    encoder = {} if backbone_type == "DilatedCnn" else {"encoder_learning_rate_factor": 0.25}
    network = {"Unet": {"n_downsampling_layers": 2}, "S3K": {"n_resnet_blocks": 1}, "DilatedCnn": {"dilations": [1]}}
    of_others = ("n_downsampling_layers", "n_resnet_blocks")
    flags = {name: value for name, value in DEFAULT_HYPERPARAMETERS.items() if name not in of_others}
    flags |= {"backbone_type": backbone_type, "n_channels": 8, **network[backbone_type], **encoder}
    flags |= {"learning_rate_schedule": "constant", "learning_rate_warmup": 0, "learning_rate": 0.004}
    flags |= {"optimizer": optimizer, "max_epochs": 1, "wandb_mode": "disabled", "max_pictures": 0}
    fit(**flags, run_dir=str(tmp_path))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file) if row["learning_rate"]]
    assert rates == pytest.approx([0.004])
