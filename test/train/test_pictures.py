import math
from types import SimpleNamespace

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit
from keypoint_detection.batch import Batch
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.sampler import Key
from keypoint_detection.errors import InputError
from keypoint_detection.train import pictures
from keypoint_detection.train.evaluation_row import EvaluationRow
from keypoint_detection.train.pictures import HeatmapPictures


@pytest.fixture
def clock(monkeypatch):
    times = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pictures.time, "monotonic", lambda: times.now)
    return times


def metrics_logger(thresholds=None):
    return SimpleNamespace(evaluates=lambda trainer: True, score_thresholds=thresholds, row=EvaluationRow())


def detector(*thresholds):
    return SimpleNamespace(score_thresholds=torch.tensor(thresholds))


def named(*stages):
    """A data module whose images are named by their set and number."""
    files = {stage: SimpleNamespace(name=lambda index, stage=stage: f"{stage}/{index}.png") for stage in stages}
    return SimpleNamespace(**{f"{stage}_annotations": annotations for stage, annotations in files.items()})


def make_batch(images, channels):
    """A batch, what a detector finds in it, and a trainer."""
    batch = Batch(
        images=torch.rand(images, 3, 32, 32), keypoints=torch.rand(images, channels, 1, 2),
        heatmaps=torch.rand(images, channels, 8, 8), sizes=torch.tensor([[32, 32]] * images),
        labelled=torch.ones(images, channels, dtype=torch.bool),
        transforms=torch.eye(3, dtype=torch.float64).repeat(images, 1, 1), indices=torch.arange(images),
    )  # fmt: skip
    outputs = {
        "heatmaps": torch.rand(images, channels, 8, 8), "xy": torch.rand(images, channels, 2, 2),
        "scores": torch.rand(images, channels, 2),
    }  # fmt: skip
    trainer = SimpleNamespace(
        is_global_zero=True, loggers=[], current_epoch=0, max_epochs=250, max_steps=-1, should_stop=False,
        sanity_checking=False, state=SimpleNamespace(fn="fit"), world_size=2, datamodule=named("validation", "test"),
    )  # fmt: skip
    return batch, outputs, trainer


@pytest.mark.parametrize(("channels", "shown"), [(1, 4), (10, 4), (20, 2), (32, 1), (100, 1)])
def test_heatmaps_of_many_channels_are_shown_of_fewer_images(tmp_path, monkeypatch, channels, shown):
    counts = {}
    for name in ("heatmap_panel", "keypoint_panel"):
        panel = getattr(pictures, name)

        def counted(images, *others, name=name, panel=panel):
            counts[name] = len(images)
            assert all(len(tensor) == len(images) for tensor in others if isinstance(tensor, torch.Tensor))
            return panel(images, *others)

        monkeypatch.setattr(pictures, name, counted)
    names = [str(channel) for channel in range(channels)]
    callback = HeatmapPictures(metrics_logger(), tmp_path, names)
    batch, outputs, trainer = make_batch(5, channels)
    callback.on_train_start(trainer, None)
    callback.on_validation_batch_end(trainer, detector(*[math.nan] * channels), outputs, batch, 0)
    assert counts == {"heatmap_panel": shown, "keypoint_panel": 4}


def test_pictures_take_a_small_share_of_the_time_but_the_best_checkpoint_is_drawn(tmp_path, monkeypatch, clock):
    def slow_panel(images, *_):
        clock.now += 1.0
        return plain_panel(images, *_)

    plain_panel = pictures.keypoint_panel
    monkeypatch.setattr(pictures, "keypoint_panel", slow_panel)
    callback = HeatmapPictures(metrics_logger(), tmp_path, ["a"])
    batch, outputs, trainer = make_batch(1, 1)
    callback.on_train_start(trainer, None)
    for epoch in range(450):
        trainer.current_epoch = epoch
        clock.now = max(clock.now, float(epoch))
        callback.on_validation_batch_end(trainer, detector(math.nan), outputs, batch, 0)
    drawn = sorted(int(path.stem[-4:]) for path in tmp_path.glob("*keypoints*"))
    # One second each: the second is due when 200 times the seconds of both have passed.
    assert drawn == [0, 400]
    # After the training, pictures carry the epoch of the checkpoint that they are of.
    trainer.state.fn, callback.metrics.row.checkpoint_epoch = "validate", 123
    callback.on_validation_batch_end(trainer, detector(math.nan), outputs, batch, 0)
    callback.on_test_batch_end(trainer, detector(math.nan), outputs, batch, 0)
    assert {path.name for path in tmp_path.glob("*0123*")} == {
        f"{stage}_{name}_epoch0123.jpg" for stage in ("best", "test") for name in ("heatmaps", "keypoints")
    }
    callback.metrics.row.checkpoint_epoch = -1  # the weights that it started from
    callback.on_validation_batch_end(trainer, detector(math.nan), outputs, batch, 0)
    assert {path.name for path in tmp_path.glob("*start*")} == {"best_heatmaps_start.jpg", "best_keypoints_start.jpg"}


def test_pictures_show_what_a_checkpoint_of_the_moment_predicts(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PICTURES_SHARE", math.inf)
    drawn, files = [], []

    def spied(images, xy, scores, true, channels, thresholds, names):
        drawn.append(thresholds)
        files.append(names)
        return keypoint_panel(images, xy, scores, true, channels, thresholds, names)

    keypoint_panel = pictures.keypoint_panel
    monkeypatch.setattr(pictures, "keypoint_panel", spied)
    metrics = metrics_logger()
    callback = HeatmapPictures(metrics, tmp_path, ["a", "b"])
    batch, outputs, trainer = make_batch(1, 2)
    unknown, best = detector(math.nan, math.nan), detector(0.3, math.nan)
    callback.on_train_start(trainer, unknown)
    callback.on_validation_batch_end(trainer, unknown, outputs, batch, 0)  # nothing was evaluated before
    metrics.score_thresholds = torch.tensor([0.6, 0.7])
    callback.on_validation_batch_end(trainer, unknown, outputs, batch, 0)
    trainer.state.fn, callback.metrics.row.checkpoint_epoch = "validate", 0
    callback.on_validation_batch_end(trainer, best, outputs, batch, 0)
    callback.on_test_batch_end(trainer, best, outputs, batch, 0)
    # 0.1 where nothing is known.
    assert drawn == [pytest.approx(t, rel=1e-4) for t in ([0.1, 0.1], [0.6, 0.7], [0.3, 0.1], [0.3, 0.1])]
    assert files == [["validation/0.png"]] * 3 + [["test/0.png"]]


def test_pictures_show_images_from_all_over_the_set_and_what_is_found_in_them(tmp_path, monkeypatch):
    shown = []

    def spied(images, xy, scores, true, *others):
        shown.append((images, xy, true, others[-1]))
        return keypoint_panel(images, xy, scores, true, *others)

    keypoint_panel = pictures.keypoint_panel
    monkeypatch.setattr(pictures, "keypoint_panel", spied)
    labels = DEFAULT_HYPERPARAMETERS["json_dataset_path"]
    changes = {"json_test_dataset_path": labels, "batch_size": 1, "max_epochs": 1, "max_pictures": 3}
    result = fit(**{**DEFAULT_HYPERPARAMETERS, **changes, "wandb_mode": "disabled"}, run_dir=str(tmp_path))
    data = KeypointsDataModule(
        labels, heatmap_sigma=4.0, heatmap_stride=4, keypoint_channels=DEFAULT_HYPERPARAMETERS["keypoint_channels"],
        json_test_dataset_path=labels,
    )  # fmt: skip
    data.setup()
    expected = data.dataset("test").__getitems__([Key(0), Key(1), Key(3)])  # of four
    images, xy, true, names = shown[-1]
    assert names == [data.test_annotations.name(index) for index in (0, 1, 3)]
    for place, sample in enumerate(expected):
        assert torch.equal(images[place], sample.images)
        labelled = true[place, :, : sample.keypoints.shape[1]]  # rows are as long as the fullest image
        assert torch.equal(labelled.nan_to_num(-1), sample.keypoints.nan_to_num(-1))
        found = result.detector.detect(sample.images[None]).xy[0]
        assert torch.allclose(xy[place].nan_to_num(-1), found.double().nan_to_num(-1), atol=1e-3)


def test_fewer_pictures_than_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="max_pictures -1: expected at least 0"):
        HeatmapPictures(metrics_logger(), tmp_path, ["a"], -1)
