import math
from datetime import timedelta
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from model_cases import quiet_trainer
from pytorch_lightning.callbacks import Callback, Timer
from torch import nn

from keypoint_detection.errors import InputError
from keypoint_detection.models.progress import (
    TrainingProgress,
    find_timer,
    has_end,
    most_epochs,
    most_steps,
    steps_per_epoch,
)


class Model(pl.LightningModule):
    """One weight; remembers its learning rate and progress at every step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        self.progress = TrainingProgress(self.trainer)

        def factor(step):
            self.seen.append(self.progress(step))
            return 1.0

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"},
        }


def fit(model, ckpt_path=None, callbacks=(), **arguments):
    loader = torch.utils.data.DataLoader(torch.ones(6, 1), batch_size=1)
    trainer = quiet_trainer(callbacks=list(callbacks), **arguments)
    trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_epochs": 2}, 12),
        ({"max_epochs": 5, "max_steps": 9}, 9),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 6),
        ({"max_epochs": 3, "limit_train_batches": 4}, 12),
    ],
)
def test_progress_by_steps(arguments, steps):
    model = Model()
    fit(model, **arguments)
    assert model.seen == pytest.approx([step / steps for step in range(steps + 1)])


class Clock:
    """A clock that a test moves on."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Tick(Callback):
    def __init__(self, clock, seconds):
        self.clock = clock
        self.seconds = seconds

    def on_train_batch_start(self, *arguments):
        self.clock.now += self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", clock)
    return clock


def test_progress_by_time(clock):
    model = Model()
    fit(model, max_time=timedelta(seconds=40), callbacks=[Tick(clock, 10)])
    assert model.seen == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


def test_progress_is_whichever_is_further(clock):
    model = Model()
    fit(model, max_time=timedelta(seconds=40), max_steps=3, callbacks=[Tick(clock, 10)])
    assert model.seen == pytest.approx([0, 1 / 3, 2 / 3, 1.0])


def test_time_goes_on_where_it_was_when_a_run_is_resumed(clock, tmp_path):
    first = fit(Model(), max_time=timedelta(seconds=80), max_steps=4, callbacks=[Tick(clock, 10)])
    first.save_checkpoint(tmp_path / "a.ckpt")
    clock.now += 1000  # the run was down for a while
    model = Model()
    fit(model, tmp_path / "a.ckpt", max_time=timedelta(seconds=80), callbacks=[Tick(clock, 10)])
    assert model.seen[-4:] == pytest.approx([5 / 8, 6 / 8, 7 / 8, 1.0])


def test_processes_agree_on_the_time_of_the_first_one():
    timer = Timer(timedelta(seconds=10))
    timer._offset = 4  # this process measured 4 s, the first one 2 s
    trainer = SimpleNamespace(
        estimated_stepping_batches=math.inf,
        max_epochs=-1,
        callbacks=[timer],
        world_size=2,
        strategy=SimpleNamespace(broadcast=lambda value: 0.2 if value == pytest.approx(0.4) else None),
    )
    assert TrainingProgress(trainer)(3) == 0.2


def test_several_processes_ask_for_the_time_every_tenth_step_but_for_the_first_ones():
    asked = []
    trainer = SimpleNamespace(
        estimated_stepping_batches=100, max_epochs=-1, max_steps=100, callbacks=[Timer(timedelta(seconds=10))],
        world_size=2, strategy=SimpleNamespace(broadcast=lambda share: asked.append(share) or 0.3),
    )  # fmt: skip
    progress, steps = TrainingProgress(trainer), []
    for step in range(45):
        before = len(asked)
        assert progress(step) == max(0.3, step / 100)  # the share of the steps is known without asking
        steps += [step] * (len(asked) - before)
    assert steps == [*range(10), 10, 20, 30, 40]
    resumed = TrainingProgress(trainer)
    asked.clear()
    assert [resumed(step) for step in (25, 26)] == [0.3, 0.3]
    assert len(asked) == 1


@pytest.mark.parametrize(("max_steps", "steps"), [(-1, 110), (40, 40)])
def test_the_last_step_of_an_epoch_may_have_fewer_batches(max_steps, steps):
    """Asked by a loader's worker, while Lightning has not counted the 21 batches yet: 11 steps in each of 10 epochs."""
    trainer = SimpleNamespace(
        estimated_stepping_batches=math.inf, num_training_batches=math.inf, train_dataloader=range(21),
        limit_train_batches=1.0, accumulate_grad_batches=2, max_epochs=10, max_steps=max_steps, callbacks=[],
        world_size=1,
    )  # fmt: skip
    assert steps_per_epoch(trainer) == 11
    assert TrainingProgress(trainer)(22) == pytest.approx(22 / steps)


def test_a_timer_without_a_duration_sets_no_end_and_is_passed_over():
    timers = [Timer(), Timer(timedelta(seconds=10))]
    assert find_timer(SimpleNamespace(callbacks=timers)) is timers[1]
    endless = SimpleNamespace(callbacks=timers[:1], max_epochs=-1, max_steps=-1)
    assert (find_timer(endless), most_epochs(endless), most_steps(endless)) == (None, math.inf, math.inf)
    assert not has_end(endless)


@pytest.mark.parametrize(("max_epochs", "max_steps"), [(3, -1), (-1, 7), (3, 7)])
def test_a_number_of_epochs_or_steps_is_an_end(max_epochs, max_steps):
    trainer = SimpleNamespace(callbacks=[], max_epochs=max_epochs, max_steps=max_steps)
    assert has_end(trainer)
    assert most_epochs(trainer) == (3 if max_epochs == 3 else math.inf)
    assert most_steps(trainer) == (7 if max_steps == 7 else math.inf)


def test_training_without_an_end_is_an_input_error():
    with pytest.raises(InputError, match="max_time"):
        fit(Model(), max_epochs=-1)
