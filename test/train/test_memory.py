"""Memory that does not suffice ends a training with one line that says what needs less of it."""

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS
from torch import nn

from keypoint_detection import KeypointDetector, fit
from keypoint_detection.cli import main
from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones import Unet
from keypoint_detection.train.memory import kept_bytes

SHORT = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_pictures": 0, "num_workers": 0}
CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.88 GiB is free."
    "\nProcess 1 has 13.00 GiB memory in use."
)


def test_what_a_network_keeps_is_counted():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1), nn.Sigmoid())
    # In 4 bytes the image, what the ReLU makes in the place of the 8 channels, and the 2 channels in the end, which
    # are there for the loss four times more.
    assert kept_bytes(network, (3, 6, 10)) == 4 * 6 * 10 * (3 + 8 + 2 + 4 * 2)


@pytest.mark.parametrize(("stride", "measured"), [(4, 165), (1, 515)])
def test_the_default_network_keeps_what_was_measured(stride, measured):
    detector = KeypointDetector(
        ["a", "b"], backbone_type="Unet", heatmap_sigma=2.0, heatmap_stride=stride, learning_rate=1.0
    )
    assert kept_bytes(detector, (3, 640, 640)) / 640**2 == pytest.approx(measured, rel=0.01)


def lack(monkeypatch, step):
    """Makes the network fail at a training step, counted from 1."""
    forward, steps = Unet.forward, []

    def fail(network, images):
        if network.training and images.device.type != "meta":
            steps.append(None)
            if len(steps) == step:
                raise torch.OutOfMemoryError(CUDA)
        return forward(network, images)

    monkeypatch.setattr(Unet, "forward", fail)


def test_before_the_first_checkpoint_it_says_what_needs_less(tmp_path, monkeypatch, capsys):
    lack(monkeypatch, step=1)
    flags = SHORT | {"run_dir": tmp_path, "batch_size": 3, "accumulate_grad_batches": 2}
    assert main(["train", *(f"--{name}={value}" for name, value in flags.items())]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: not enough memory for 2.50 GiB more: to use less, try a --batch_size below 3 (1 with "
        "--accumulate_grad_batches 6 for as many images per step), a smaller --image_size, or --precision bf16-mixed"
    )


def test_with_a_checkpoint_it_says_how_to_go_on(tmp_path, monkeypatch):
    lack(monkeypatch, step=4)  # of two in each epoch
    given = {"precision": "bf16-mixed", "batch_size": 2, "image_size": "64", "train_crop_size": "32"}
    with pytest.raises(InputError) as error:
        fit(**SHORT | given, run_dir=str(tmp_path))
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert str(error.value) == (
        "not enough memory for 2.50 GiB more: to use less, try a --batch_size below 2 (1 with "
        "--accumulate_grad_batches 2 for as many images per step), or a smaller --image_size and --train_crop_size; "
        f"{last} is intact: resume with the same flags and --resume {tmp_path} where there is more memory, or start "
        f"from its weights with other flags and --checkpoint {last}"
    )
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_a_single_image_on_a_cpu(tmp_path, monkeypatch):
    def fail(network, images):
        return torch.empty(2**50) if network.training and images.device.type != "meta" else forward(network, images)

    forward = Unet.forward
    monkeypatch.setattr(Unet, "forward", fail)
    with pytest.raises(InputError) as error:
        fit(**SHORT | {"batch_size": 1}, run_dir=str(tmp_path))
    assert str(error.value) == (
        "not enough memory for 4503599627370496 bytes more: to use less, try a smaller --image_size, or "
        "--precision bf16-mixed"
    )


def test_another_error_stays_as_it_is(tmp_path, monkeypatch):
    def fail(network, images):
        if network.training and images.device.type != "meta":
            raise RuntimeError("a bug")
        return forward(network, images)

    forward = Unet.forward
    monkeypatch.setattr(Unet, "forward", fail)
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        fit(**SHORT, run_dir=str(tmp_path))
