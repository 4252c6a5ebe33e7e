from types import SimpleNamespace

import pytest
import torch

from keypoint_detection.batch import Batch
from keypoint_detection.train import pictures
from keypoint_detection.train.pictures import HeatmapPictures


@pytest.fixture
def clock(monkeypatch):
    times = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pictures.time, "monotonic", lambda: times.now)
    return times


def test_pictures_take_a_small_share_of_the_time_but_the_last_epoch_is_drawn(tmp_path, monkeypatch, clock):
    def slow_panel(images, *_):
        clock.now += 1.0
        return plain_panel(images, *_)

    plain_panel = pictures.keypoint_panel
    monkeypatch.setattr(pictures, "keypoint_panel", slow_panel)
    callback = HeatmapPictures(SimpleNamespace(evaluates=lambda trainer: True), tmp_path, ["a"])
    batch = Batch(
        images=torch.rand(1, 3, 32, 32), keypoints=torch.rand(1, 1, 1, 2), heatmaps=torch.rand(1, 1, 8, 8),
        sizes=torch.tensor([[32, 32]]), labelled=torch.ones(1, 1, dtype=torch.bool),
        transforms=torch.eye(3, dtype=torch.float64)[None], indices=torch.tensor([0]),
    )  # fmt: skip
    outputs = {"heatmaps": torch.rand(1, 1, 8, 8), "xy": torch.rand(1, 1, 2, 2), "scores": torch.rand(1, 1, 2)}
    trainer = SimpleNamespace(
        is_global_zero=True, loggers=[], current_epoch=0, max_epochs=200, max_steps=-1, should_stop=False,
        sanity_checking=False, state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    callback.on_train_start(trainer, None)
    for epoch in range(200):
        trainer.current_epoch = epoch
        clock.now = max(clock.now, float(epoch))
        callback.on_validation_batch_end(trainer, None, outputs, batch, 0)
    drawn = sorted(int(path.stem[-4:]) for path in tmp_path.glob("*keypoints*"))
    # One second each: the next one is due when 100 times as many seconds have passed.
    assert drawn == [0, 100, 199]
    # After the training, pictures carry the epoch of the checkpoint that they are of.
    trainer.state.fn, callback.checkpoint_epoch = "validate", 123
    callback.on_validation_batch_end(trainer, None, outputs, batch, 0)
    callback.on_test_batch_end(trainer, None, outputs, batch, 0)
    assert {path.name for path in tmp_path.glob("*0123*")} == {
        f"{stage}_{name}_epoch0123.jpg" for stage in ("best", "test") for name in ("heatmaps", "keypoints")
    }
