"""Random states and values of a training that goes on, also on GPUs that are not there."""

import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from keypoint_detection.train.resume_state import ResumeState


def trainer_on(device):
    return SimpleNamespace(callback_metrics={}, strategy=SimpleNamespace(root_device=torch.device(device)))


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_the_gpu_of_every_process_goes_on_with_the_numbers_of_the_first_one(device, monkeypatch):
    states = {"cuda:0": [7], "cuda:1": [0]}  # what the first process knows: it draws on its own alone
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(states))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor(states[str(device)]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({str(device): state.tolist()}))
    first, again = ResumeState(), ResumeState()
    first.on_fit_start(trainer_on("cuda:0"), None)
    saved = first.state_dict()
    states[device] = [1]  # as after the start of another process
    again.load_state_dict(saved)
    again.on_train_start(trainer_on(device), SimpleNamespace(on_train_epoch_start=lambda: None))
    assert states[device] == [7]


def test_all_generators_go_on_where_they_were_and_values_are_those_before():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    first, again, trainer, started = ResumeState(), ResumeState(), trainer_on("cpu"), []
    trainer.callback_metrics["validation/loss"] = torch.tensor(0.25)
    first.on_fit_start(trainer, None)
    torch.save(first.state_dict(), file := io.BytesIO())
    expected = [draw() for _ in range(2)]
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    new = trainer_on("cpu")
    module = SimpleNamespace(on_train_epoch_start=lambda: started.append(draw()))  # as what is set up before
    again.on_train_start(new, module)
    found = [draw()]
    again.on_train_start(new, module)  # of another training of the same trainer
    assert [*found, draw()] == expected
    assert len(started) == 1
    assert new.callback_metrics == {"validation/loss": 0.25}
