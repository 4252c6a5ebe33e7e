"""What a training says at its end."""

import logging
import math

import pytest

from keypoint_detection.report import EPOCH_AXIS
from keypoint_detection.train.finish import read_curves, warn_of_hardly_learned


def test_channels_that_were_hardly_learned_are_named(caplog):
    metrics = {"best/best_f1/paws": 0.19, "best/best_f1/tail": 0.2, "best/best_f1/nose": math.nan, "best/best_f1": 0.1}
    with caplog.at_level(logging.WARNING):
        warn_of_hardly_learned(metrics, ["paws", "tail", "nose", "absent"])
    assert [message[: message.index(" (")] for message in caplog.messages] == ["hardly learned: paws"]
    # A training that learns its images by heart does not find more for being longer, one of small steps may.
    falling, _, not_falling = caplog.messages[0].partition("; ")[2].partition("; ")
    condition = "if the validation loss still falls (curves.png)"
    assert falling == f"{condition}, train longer or with a larger --learning_rate"
    assert not_falling == "otherwise look at the labels and at augmentations.jpg, or label more images"
    # All that is found may be right, at a recall below 0.11.
    assert "will miss most of these keypoints, or most detections will be wrong" in caplog.text


def test_where_no_channel_was_learned_the_advice_is_that_of_the_collapse(caplog):
    weak = {"best/best_f1/paws": 0.1, "best/best_f1/tail": 0.0, "best/best_f1/nose": math.nan}
    warn_of_hardly_learned(weak, ["paws", "tail", "nose"], "a lower --learning_rate")
    warn_of_hardly_learned(weak | {"best/best_f1/nose": 0.5}, ["paws", "tail", "nose"], "a lower --learning_rate")
    warn_of_hardly_learned(weak, ["paws", "tail", "nose"], gets_worse=True)
    advised, others, early = caplog.messages
    assert early.endswith("be wrong; look at the labels and at augmentations.jpg, or label more images")
    assert advised.endswith("be wrong; try a lower --learning_rate")
    assert "be wrong; if the validation loss still falls" in others


def test_what_is_measured_within_an_epoch_lies_before_its_end(tmp_path):
    path = tmp_path / "metrics.csv"
    # Epoch 0 has 10 steps, epoch 2 was not logged, and what is measured after the training ends no epoch.
    rows = ["4,0,0.3,", "9,0,0.2,", "14,1,0.1,", "19,1,0.05,", "24,3,0.04,", "39,3,0.03,", "40,3,,0.9"]
    path.write_text("\n".join(["step,epoch,validation/loss,best/meanAP", *rows]) + "\n")
    curves = read_curves(path, 10)
    assert curves["validation/loss"][0] == pytest.approx([-0.5, 0, 0.5, 1, 2.25, 3])
    assert curves["validation/loss"][1] == [0.3, 0.2, 0.1, 0.05, 0.04, 0.03]
    assert list(curves) == ["validation/loss"]
    # -0.5 is the middle of the first epoch, whose end is 0 and whose start is -1: so the axis says.
    assert EPOCH_AXIS == "epoch (the first is 0; before training: -1)"
    # Before the first step, in a training of one step an epoch.
    path.write_text("step,epoch,validation/loss\n0,-1,0.9\n0,0,0.8\n1,1,0.7\n")
    assert read_curves(path, 1)["validation/loss"] == ([-1, 0, 1], [0.9, 0.8, 0.7])
    assert read_curves(tmp_path / "none.csv", 10) == {}


def test_a_last_epoch_that_was_not_completed_ends_where_the_training_did(tmp_path):
    path = tmp_path / "metrics.csv"
    # 8 steps an epoch: epoch 2 was left after 2 steps, gone on with after a resume, and ended after 6.
    path.write_text("step,epoch,train/loss\n7,0,0.9\n15,1,0.8\n17,2,0.7\n21,2,0.6\n")
    assert read_curves(path, 8) == {"train/loss": ([0, 1, 1.25, 1.75], [0.9, 0.8, 0.7, 0.6])}
    # A training that is over within its first epoch.
    path.write_text("step,epoch,train/loss\n3,0,0.9\n")
    assert read_curves(path, 8) == {"train/loss": ([-0.5], [0.9])}
    # One on two devices at first, so that two epochs were of 4 steps.
    path.write_text("step,epoch,train/loss\n3,0,0.9\n7,1,0.8\n9,2,0.7\n")
    assert read_curves(path, 8) == {"train/loss": ([0, 1, 1.25], [0.9, 0.8, 0.7])}
