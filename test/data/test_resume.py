"""Training that is interrupted anywhere reads the same samples in the same order as training that is not."""

import pytest
import pytorch_lightning as pl
import torch
from data_sets import write_data_set
from pytorch_lightning.callbacks import ModelCheckpoint

from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.errors import InputError

EPOCHS = 3
STEPS_PER_EPOCH = 4  # 7 training images in batches of 2


class KilledError(Exception):
    pass


class Reader(pl.LightningModule):
    """Notes what it is given; its one weight depends on all of it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def training_step(self, batch, batch_index):
        self.seen.append((self.current_epoch, batch_index, batch.indices.tolist(), float(batch.images.sum())))
        return (self.weight * batch.images.mean()).square().mean()

    def validation_step(self, batch, batch_index):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class KillAt(pl.Callback):
    """Raises at the beginning of a step, as SIGKILL would: nothing is saved after it."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KilledError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data_set(folder, [(16, 12)] * 9, [{"a": [[3, 4]]}] * 9)
    return folder


def train(folder, callbacks, workers=0, checkpoint=None, batch_size=2, **arguments):
    module = KeypointsDataModule(
        folder / "dataset.json",
        heatmap_sigma=2.0,
        heatmap_stride=1,
        batch_size=batch_size,
        num_workers=workers,
        augmentation=Augmentation(rotation=30, horizontal_flip=0.5, vertical_flip=0.0, cutmix=0.5),
    )
    reader = Reader()
    trainer = pl.Trainer(
        **{"accelerator": "cpu", "max_epochs": EPOCHS, **arguments},
        callbacks=callbacks,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    )
    try:
        trainer.fit(reader, module, ckpt_path=checkpoint)
    except KilledError:
        assert any(isinstance(callback, KillAt) for callback in callbacks)
    return reader


def saved_every(folder, steps):
    return ModelCheckpoint(
        folder, filename="last", every_n_train_steps=steps, save_top_k=1, enable_version_counter=False
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("save_every", "kill_at"), [(1, 6), (3, 5), (4, 4), (4, 6), (5, 11)])
def test_killed_and_resumed(folder, tmp_path, workers, save_every, kill_at):
    whole = train(folder, [], workers)
    assert [step[:2] for step in whole.seen] == [(e, b) for e in range(EPOCHS) for b in range(STEPS_PER_EPOCH)]
    train(folder, [saved_every(tmp_path, save_every), KillAt(kill_at)], workers)
    resumed = train(folder, [], workers, tmp_path / "last.ckpt")
    saved = kill_at - kill_at % save_every
    assert resumed.seen == whole.seen[saved:]
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("on_train_epoch_end", [False, True])
def test_resumed_from_the_end_of_an_epoch(folder, tmp_path, on_train_epoch_end):
    whole = train(folder, [])
    checkpoint = ModelCheckpoint(
        tmp_path, "last", every_n_epochs=1, save_on_train_epoch_end=on_train_epoch_end, enable_version_counter=False
    )
    train(folder, [checkpoint, KillAt(STEPS_PER_EPOCH + 2)])
    resumed = train(folder, [], checkpoint=tmp_path / "last.ckpt")
    assert resumed.seen == whole.seen[STEPS_PER_EPOCH:]
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "arguments",
    [
        {"max_epochs": -1, "max_steps": 10},
        {"limit_train_batches": 3},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 0.5},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
)
@pytest.mark.parametrize("save_every", [2, 3, 4])
def test_resumed_with_other_arguments_of_the_trainer(folder, tmp_path, arguments, save_every):
    whole = train(folder, [], **arguments)
    accumulated = arguments.get("accumulate_grad_batches", 1)
    train(folder, [saved_every(tmp_path, save_every), KillAt(5)], **arguments)
    resumed = train(folder, [], checkpoint=tmp_path / "last.ckpt", **arguments)
    saved = (5 - 5 % save_every) * accumulated
    assert resumed.seen == whole.seen[saved:]
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore")
def test_another_batch_size_cannot_go_on_in_mid_epoch(folder, tmp_path):
    train(folder, [saved_every(tmp_path, 2), KillAt(3)])
    with pytest.raises(InputError, match="batch_size"):
        train(folder, [], checkpoint=tmp_path / "last.ckpt", batch_size=3)
