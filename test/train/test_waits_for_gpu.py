"""How often a training waits for a GPU, and that nothing on it meets what lies on the CPU; without one."""

import pytest
import pytorch_lightning as pl
import torch
from configuration import DEFAULT_HYPERPARAMETERS, TEST_DATASET
from pytorch_lightning.strategies import SingleDeviceStrategy
from simulated_gpu import GPU, OnGpu, SimulatedGpu

from keypoint_detection import fit
from keypoint_detection.data import evaluation_loader
from keypoint_detection.train import train, trainer

ANNOTATIONS = str(TEST_DATASET / "annotations.json")
FLAGS = DEFAULT_HYPERPARAMETERS | {
    "json_validation_dataset_path": ANNOTATIONS, "wandb_mode": "disabled",
    "max_pictures": 0, "log_every_n_steps": 1000,
}  # fmt: skip


class Recorder(pl.Callback):
    """Takes down what was waited for from one batch to the next, and in each batch of a validation."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.steps, self.validations = [], []

    def take(self):
        taken = dict(self.gpu.waits)
        self.gpu.waits.clear()
        return taken

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        assert isinstance(batch.images, OnGpu)
        if batch_idx:
            self.steps.append(self.take())
        self.gpu.waits.clear()

    def on_validation_batch_start(self, *_):
        self.gpu.waits.clear()

    def on_validation_batch_end(self, trainer, *_):
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.validations.append(self.take())


def record(monkeypatch, folder, **flags):
    gpu = SimulatedGpu()
    recorder = Recorder(gpu)
    build = train.build_callbacks
    with monkeypatch.context() as patch, gpu:
        patch.setattr(train, "build_callbacks", lambda *arguments: [*build(*arguments), recorder])
        fit(**FLAGS | flags, run_dir=str(folder))
    return recorder


def test_the_simulation_refuses_what_a_gpu_does_and_counts_what_is_waited_for():
    with SimulatedGpu() as gpu:
        there, here = torch.arange(3.0, device=GPU, requires_grad=True), torch.arange(3.0)
        with pytest.raises(RuntimeError, match="add: expected all tensors on one device"):
            there + here
        with pytest.raises((TypeError, RuntimeError)):
            there.detach().numpy()
        (there * here.to(GPU, non_blocking=True) * torch.tensor(2.0)).sum().backward()
        assert gpu.waits == {}
        assert there.grad.tolist() == [0, 2, 4]
        assert there[there > 0].cpu().tolist() == [1, 2]
        assert float(here.to(GPU)[1]) == 1
    assert gpu.waits == {"copy": 3, "index": 1, "_local_scalar_dense": 1}


def test_a_simulation_that_cannot_begin_leaves_all_as_it_was(monkeypatch):
    def state():
        return torch.cuda.Event, SingleDeviceStrategy.__init__, torch.__future__.get_swap_module_params_on_conversion()

    before = state()
    monkeypatch.delattr(torch._C, "_set_only_lift_cpu_tensors")  # as in another version of torch
    with pytest.raises(AttributeError, match="_set_only_lift_cpu_tensors"), SimulatedGpu():
        pass
    assert state() == before


def test_a_step_waits_for_the_gpu_once_and_a_validation_as_often_for_many_images(monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "shows_bars", lambda: True)
    monkeypatch.setattr(evaluation_loader, "_BATCH", 1)  # as many as in training
    one = {"batch_size": 1, "keypoint_channels": "corner_keypoints", "keypoint_channel_max_keypoints": None}
    single = record(monkeypatch, tmp_path / "single", **one, max_epochs=1)
    several = record(monkeypatch, tmp_path / "several", batch_size=2)
    # For the loss, of which it has to know that it is a number: meanwhile, the GPU has the gradients to compute. At the
    # very first batch, what is logged moves to the GPU.
    assert single.steps[1:] == [{"event": 1}] * 2
    assert several.steps[1:] == [{"event": 1}]
    # For maps in which equal peaks compete, and what the metrics keep: keypoints and scores, found and true.
    assert single.validations[1:] == [{"nonzero": 1, "copy": 6}] * 3
    assert several.validations[1:] == [{"nonzero": 1, "copy": 6}] * 3
