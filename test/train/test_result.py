"""What a training says at its end."""

import logging
import math

from keypoint_detection.train.result import warn_of_hardly_learned


def test_channels_that_were_hardly_learned_are_named(caplog):
    metrics = {"best/best_f1/paws": 0.19, "best/best_f1/tail": 0.2, "best/best_f1/nose": math.nan, "best/best_f1": 0.1}
    with caplog.at_level(logging.WARNING):
        warn_of_hardly_learned(metrics, ["paws", "tail", "nose", "absent"])
    assert [message[: message.index(" (")] for message in caplog.messages] == ["hardly learned: paws"]
    # All that is found may be right, at a recall below 0.11.
    assert "misses most of it or most that it finds is wrong" in caplog.text
