"""What Lightning's counters say in a checkpoint that is written between two epochs."""

import signal
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from keypoint_detection.train.last_checkpoint import LastCheckpoint


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class AtTheLastBatch(pl.Callback):
    """Writes a checkpoint at the end of the last of 3 batches of the first epoch, and ends the training in the next."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, trainer, *arguments):
        if trainer.current_epoch == 1:
            raise RuntimeError("killed")


def test_between_epochs_the_counters_are_those_of_the_end_of_the_last_batch(tmp_path):
    loader = torch.utils.data.DataLoader(torch.ones(3, 1))
    last = LastCheckpoint(tmp_path / "last.ckpt", every_n_epochs=1, every_n_steps=None)
    trainer = pl.Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu",
        max_epochs=2, callbacks=[last, AtTheLastBatch(tmp_path / "batch.ckpt")],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit(Model(), loader, loader)
    between, at_batch = (torch.load(tmp_path / name, weights_only=True) for name in ("last.ckpt", "batch.ckpt"))
    assert between["epoch"] == at_batch["epoch"] == 0
    for part in ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict"):
        assert between["loops"]["fit_loop"][part] == at_batch["loops"]["fit_loop"][part], part
    validated = between["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    assert set(validated.values()) == {0}


@pytest.mark.parametrize(("processes", "step"), [(1, 4), (2, 11)])
def test_processes_remember_that_they_are_to_stop(tmp_path, monkeypatch, processes, step):
    # Asked in step 4; of several, the processes ask one another in step 10, which a validation follows.
    saved = []
    last = LastCheckpoint(tmp_path / "last.ckpt", every_n_epochs=1, every_n_steps=None)
    monkeypatch.setattr(last, "_save", lambda trainer, **arguments: saved.append((trainer.global_step, arguments)))
    # Another process was not asked.
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision and not (all and processes > 1))
    for number in range(1, 13):
        if number == 4:
            last._ask_to_stop(signal.SIGTERM, None)
        trainer = SimpleNamespace(
            world_size=processes, global_step=number, accumulate_grad_batches=1, strategy=strategy, should_stop=False,
            num_training_batches=100, check_val_every_n_epoch=1, val_check_batch=10,
        )  # fmt: skip
        last.on_train_batch_end(trainer, None, None, None, number - 1)
    assert saved[0] == (step, {"between_epochs": False, "stops": True})


@pytest.mark.parametrize(
    ("changes", "saves"),
    [
        ({}, True),
        ({"val_check_batch": 3}, False),
        ({"num_training_batches": 6}, False),
        ({"should_stop": True}, False),
        ({"check_val_every_n_epoch": None, "val_check_batch": 4}, False),  # it is the eighth of all epochs
        ({"check_val_every_n_epoch": None, "val_check_batch": 3}, True),
        ({"check_val_every_n_epoch": None, "val_check_batch": None}, True),  # the interval is a time
    ],
)
def test_a_step_that_a_validation_follows_is_not_saved_before_it(tmp_path, monkeypatch, changes, saves):
    saved = []
    last = LastCheckpoint(tmp_path / "last.ckpt", every_n_epochs=1, every_n_steps=1)
    monkeypatch.setattr(last, "_save", lambda *_, **__: saved.append(None))
    values = {
        "world_size": 1, "global_step": 6, "accumulate_grad_batches": 1, "should_stop": False, "val_check_batch": 100,
        "num_training_batches": 100, "check_val_every_n_epoch": 1, "fit_loop": SimpleNamespace(total_batch_idx=7),
        "strategy": SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
    }  # fmt: skip
    last.on_train_batch_end(SimpleNamespace(**values | changes), None, None, None, 5)
    assert bool(saved) is saves


def test_auto_writes_it_between_epochs_once_in_five_seconds(tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr("keypoint_detection.train.last_checkpoint.time.monotonic", lambda: now[0])
    last = LastCheckpoint(tmp_path / "last.ckpt", every_n_epochs="auto", every_n_steps=None)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision, broadcast=lambda value: value)
    for number, now[0] in enumerate([1.0, 2.0, 5.0, 7.0, 11.0, 12.5], start=1):
        save = lambda *_, **__: saved.append(now[0])  # noqa: E731
        trainer = SimpleNamespace(global_step=number, strategy=strategy, save_checkpoint=save)
        last.on_train_epoch_start(trainer, None)
    assert saved == [1.0, 7.0, 12.5]


@pytest.mark.parametrize(("every", "steps"), [(1, [*range(1, 10)]), (2, [2, 4, 6, 8, 9]), (3, [3, 6, 9])])
def test_steps_of_several_batches_count_once_also_at_the_end_of_an_epoch(tmp_path, monkeypatch, every, steps):
    saved = []
    last = LastCheckpoint(tmp_path / "last.ckpt", every_n_epochs=100, every_n_steps=every)
    # Steps are made after batches 2, 4 and 5 of each of the three epochs.
    trainer = pl.Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu",
        max_epochs=3, accumulate_grad_batches=2, callbacks=[last],
    )  # fmt: skip
    monkeypatch.setattr(trainer, "save_checkpoint", lambda *_, **__: saved.append(trainer.global_step))
    loader = torch.utils.data.DataLoader(torch.ones(5, 1))
    trainer.fit(Model(), loader, loader)
    assert saved == steps


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4])])
def test_between_epochs_it_is_written_after_as_many_as_was_asked(tmp_path, monkeypatch, every, epochs):
    saved = []
    last = LastCheckpoint(tmp_path / "last.ckpt", every_n_epochs=every, every_n_steps=None)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    monkeypatch.setattr(last, "_save", lambda trainer, **_: saved.append(trainer.current_epoch))
    for epochs_done in range(7):  # at the start of the epoch of this number, counted from 0
        trainer = SimpleNamespace(global_step=2 * epochs_done, current_epoch=epochs_done, strategy=strategy)
        last.on_train_epoch_start(trainer, None)
    assert saved == epochs
