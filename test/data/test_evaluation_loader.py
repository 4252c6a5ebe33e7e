"""Evaluations read larger batches than training, and read the images of small sets only once."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from data_sets import write_data_set

from keypoint_detection.data import evaluation_loader
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.evaluation_loader import evaluation_batch_size


@pytest.fixture
def folder(tmp_path):
    write_data_set(tmp_path, [(20, 10)] * 6, [{"a": [[1 + index, 2]], "b": []} for index in range(6)])
    return tmp_path


def validation_loader(folder, **arguments):
    """A loader of the six images in batches of 4 and 2."""
    path = folder / "dataset.json"
    given = {"heatmap_sigma": 2.0, "heatmap_stride": 2, "batch_size": 4, "num_workers": 0, **arguments}
    module = KeypointsDataModule(path, json_validation_dataset_path=path, **given)
    module.setup()
    return module.val_dataloader()


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(evaluation_loader, "_BATCH", 4)


@pytest.mark.usefixtures("small_batches")
def test_batches_are_read_once(folder):
    loader = validation_loader(folder)
    first, second = list(loader), list(loader)
    assert [len(batch.indices) for batch in first] == [4, 2]
    assert all(a is b for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("small_batches")
def test_a_pass_that_ends_early_keeps_nothing(folder):
    loader = validation_loader(folder)
    early = next(iter(loader))
    whole = list(loader)
    assert [len(batch.indices) for batch in whole] == [4, 2]
    assert whole[0] is not early


@pytest.mark.usefixtures("small_batches")
def test_batches_are_kept_though_nobody_asks_for_one_after_the_last(folder):
    loader = validation_loader(folder)
    passes = iter(loader)
    read = [next(passes) for _ in range(2)]
    assert all(a is b for a, b in zip(read, loader, strict=True))


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("arguments", [{"num_workers": 1}, {"cache_images": False}])
def test_workers_read_again_and_so_does_a_set_that_is_not_to_be_cached(folder, arguments):
    loader = validation_loader(folder, **arguments)
    first, second = list(loader), list(loader)
    assert first[0] is not second[0]
    assert torch.equal(first[0].images, second[0].images)


# Each image has 20 x 10 pixels of 3 channels, 2 heatmaps of 10 x 5 cells, and 2 places for a keypoint
# of 2 numbers, all of 4 bytes; 2 sizes of 8 bytes, 2 flags, 9 numbers of 8 bytes and an index of 8.
BYTES = 6 * (4 * (600 + 100 + 4) + 16 + 2 + 72 + 8)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("limit", "kept"), [(BYTES, True), (BYTES - 1, False), (0, False)])
def test_only_small_sets_are_kept(folder, monkeypatch, limit, kept):
    monkeypatch.setattr(evaluation_loader, "_KEPT_BYTES", limit)
    loader = validation_loader(folder)
    first, second = list(loader), list(loader)
    assert [a is b for a, b in zip(first, second, strict=True)] == [kept, kept]
    assert [len(batch.indices) for batch in second] == [4, 2]


class Watcher(pl.LightningModule):
    """Notes the batches of its validations."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.validated = []

    def training_step(self, batch, batch_index):
        return self.weight * batch.images.mean()

    def validation_step(self, batch, batch_index):
        self.validated.append(batch.images)

    def predict_step(self, batch, batch_index):
        return batch.indices

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_validates_on_the_same_memory_every_epoch(folder):
    path = folder / "dataset.json"
    module = KeypointsDataModule(
        path, json_validation_dataset_path=path, heatmap_sigma=2.0, heatmap_stride=2, batch_size=2, num_workers=0
    )
    watcher = Watcher()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(watcher, module)
    sanity, *epochs = watcher.validated
    assert sanity.shape == (6, 3, 10, 20)
    assert [images.data_ptr() for images in epochs] == [sanity.data_ptr()] * 3
    assert torch.cat(trainer.predict(watcher, module)).tolist() == [*range(6)]


@pytest.mark.parametrize(
    ("training", "sizes", "channels", "stride", "expected"),
    [
        (4, [[288, 288], [100, 100]], 32, 4, 16),  # 4 * 288 * 288 * 5 bytes each, 1.66 MB, of 67.1 MB
        (4, [[640, 480], [480, 640]], 16, 2, 7),  # 4 * 640 * 480 * 7 bytes, 8.6 MB
        (1, [[1920, 1080]], 16, 4, 2),  # 33.2 MB
        (1, [[1920, 1080]], 100, 1, 1),  # 854 MB
        (4, [[1920, 1080]], 100, 1, 4),
        (32, [[64, 64]], 1, 1, 32),
        (2, [[0, 0]], 1, 4, 16),
    ],
)
def test_evaluations_of_small_images_have_larger_batches(training, sizes, channels, stride, expected):
    assert evaluation_batch_size(training, np.array(sizes), channels, stride) == expected
