import math
from datetime import timedelta
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.callbacks import Callback, Timer
from torch import nn

from keypoint_detection.errors import InputError
from keypoint_detection.models.muon import Muon
from keypoint_detection.models.optimization import (
    SCHEDULES,
    TrainingProgress,
    build_optimizer,
    constant,
    cosine,
    cosine_to_half,
    one_cycle,
    parameter_groups,
)


@pytest.mark.parametrize(
    ("schedule", "progress", "warmup", "expected"),
    [
        (constant, 0.0, 0.2, 0.0),
        (constant, 0.05, 0.2, 0.25),
        (constant, 0.2, 0.2, 1.0),
        (constant, 1.0, 0.2, 1.0),
        (constant, 0.0, 0.0, 1.0),
        (cosine, 0.0, 0.0, 1.0),
        (cosine, 0.1, 0.2, 0.5),
        (cosine, 0.2, 0.2, 1.0),
        (cosine, 0.6, 0.2, 0.5),  # half way down
        (cosine, 1.0, 0.2, 0.0),
        (cosine_to_half, 0.1, 0.2, 0.5),
        (cosine_to_half, 0.2, 0.2, 1.0),
        (cosine_to_half, 0.6, 0.2, 0.75),  # half way down
        (cosine_to_half, 1.0, 0.2, 0.5),
        (one_cycle, 0.0, 0.3, 1 / 25),
        (one_cycle, 0.15, 0.3, 0.52),  # half way between 1/25 and 1
        (one_cycle, 0.3, 0.3, 1.0),
        (one_cycle, 0.65, 0.3, 0.50005),  # half way between 1 and 1/10,000
        (one_cycle, 1.0, 0.3, 1e-4),
    ],
)
def test_schedules_by_hand(schedule, progress, warmup, expected):
    assert schedule(progress, warmup) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@given(a=st.floats(0, 1), b=st.floats(0, 1), warmup=st.floats(0, 0.99))
def test_schedules_rise_in_the_warm_up_and_never_rise_after(name, a, b, warmup):
    early, late = sorted((a, b))
    first, second = SCHEDULES[name](early, warmup), SCHEDULES[name](late, warmup)
    assert 0 <= first <= 1
    if late <= warmup:
        assert first <= second + 1e-12
    elif early >= warmup:
        assert first >= second - 1e-12


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
    trainer = pl.Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
        callbacks=list(callbacks),
        **arguments,
    )
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
    assert TrainingProgress(trainer)(22) == pytest.approx(22 / steps)


def test_training_without_an_end_is_an_input_error():
    with pytest.raises(InputError, match="max_time"):
        fit(Model(), max_epochs=-1)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
        self.head = nn.Conv2d(4, 2, 1)


def test_parameter_groups():
    network = Network()
    groups = parameter_groups(network, [network.encoder], learning_rate=1e-2, weight_decay=0.1, encoder_factor=0.5)
    found = {group["name"]: (group["lr"], group["weight_decay"], [id(p) for p in group["params"]]) for group in groups}
    conv, norm, head = network.encoder[0], network.encoder[1], network.head
    assert found == {
        "encoder": (5e-3, 0.1, [id(conv.weight)]),
        "encoder_norms_and_biases": (5e-3, 0.0, [id(conv.bias), id(norm.weight), id(norm.bias)]),
        "network": (1e-2, 0.1, [id(head.weight)]),
        "network_norms_and_biases": (1e-2, 0.0, [id(head.bias)]),
    }


def test_the_weight_of_a_linear_layer_is_decayed():
    layer = nn.Linear(2, 3)
    groups = parameter_groups(layer, [], learning_rate=1e-2, weight_decay=0.1, encoder_factor=1.0)
    decayed = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decayed == {id(layer.weight): 0.1, id(layer.bias): 0.0}


def test_kernels_that_join_enough_channels_get_orthogonal_steps():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 9, 3, bias=False)
    )
    groups = parameter_groups(
        network,
        [],
        learning_rate=0.3,
        weight_decay=0.1,
        encoder_factor=1.0,
        hidden=[network[0], network[1], network[2]],
    )
    (kernels,) = [group for group in groups if group["orthogonal"]]
    assert kernels["params"] == [network[2].weight]
    assert (kernels["lr"], kernels["weight_decay"]) == (pytest.approx(1.0), 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert isinstance(build_optimizer(groups, SimpleNamespace(precision="32-true", gradient_clip_val=1.0)), Muon)


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [("32-true", 1.0, True), ("16-mixed", None, True), ("16-mixed", 1.0, False), ("bf16-mixed", 1.0, False)],
)
def test_the_fused_kernel_is_left_out_where_lightning_could_not_clip(precision, clip, fused):
    network = Network()
    groups = parameter_groups(network, [], learning_rate=1e-2, weight_decay=0.1, encoder_factor=1.0)
    optimizer = build_optimizer(groups, SimpleNamespace(precision=precision, gradient_clip_val=clip))
    assert [group["fused"] for group in optimizer.param_groups] == [fused] * 2
