import logging

import pytest
import torch
import torch._dynamo
from configuration import DEFAULT_HYPERPARAMETERS
from pytorch_lightning.accelerators import CPUAccelerator
from simulated_gpu import GPU, SimulatedGpu

from keypoint_detection import fit
from keypoint_detection.train.bad_loss import StopAtBadLoss
from keypoint_detection.train.device_speed import tf32_products

SHORT = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_steps": 1, "max_epochs": 1, "max_pictures": 0}


def test_training_goes_on_where_nothing_can_be_compiled(tmp_path, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler found\nlong traceback")

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.INFO, logger="keypoint_detection"):
        result = fit(**SHORT, compile=True, run_dir=str(tmp_path))
    assert result.best_checkpoint.exists()
    assert "not compiled, because torch.compile failed here: no C++ compiler found" in caplog.text
    # The line at the end that says where the time went.
    assert "time: data" in caplog.text
    assert "evaluation" in caplog.text


def test_compiling_is_chosen_by_a_flag(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compiled.append((type(module).__name__, options))
    )
    limits = torch._dynamo.config
    with limits.patch(recompile_limit=8):  # pytest's own way to patch would leave none behind
        fit(**SHORT, run_dir=str(tmp_path / "plain"))
        assert compiled == []
        assert limits.recompile_limit == 8
        fit(**SHORT, compile=True, run_dir=str(tmp_path / "compiled"))
        # A graph for all sizes, torch's own choice once images grow, does not compile.
        assert compiled == [("Unet", {"dynamic": False})]
        assert limits.recompile_limit >= 20, "five sizes, to train and to validate on, whole and last batches"


@pytest.fixture
def matmul_precision():
    """Puts back how torch computes matrix products, which is the process's."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("device", "capability", "hip", "before", "within"),
    [
        ("cuda", (8, 0), None, "highest", "high"),
        ("cuda", (12, 0), None, "highest", "high"),
        ("cuda", (8, 0), None, "medium", "medium"),  # the user has chosen
        ("cuda", (7, 5), None, "highest", "highest"),
        ("cuda", (10, 3), "6.4", "highest", "highest"),  # AMD counts otherwise
        ("cpu", (8, 0), None, "highest", "highest"),
    ],
)
def test_products_are_in_tf32_where_the_gpu_has_it(
    device, capability, hip, before, within, monkeypatch, matmul_precision
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    torch.set_float32_matmul_precision(before)
    with tf32_products(torch.device(device)):
        assert torch.get_float32_matmul_precision() == within
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(RuntimeError, match="of the training"), tf32_products(torch.device(device)):
        raise RuntimeError("of the training")
    assert torch.get_float32_matmul_precision() == before


def test_a_training_on_a_gpu_has_tf32_when_lightning_looks_for_it(tmp_path, monkeypatch, matmul_precision):
    seen, step = [], StopAtBadLoss.on_train_batch_start

    def look(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        if isinstance(arguments[0], StopAtBadLoss):
            step(*arguments)

    monkeypatch.setattr(StopAtBadLoss, "on_train_batch_start", look)
    torch.set_float32_matmul_precision("highest")
    with SimulatedGpu(), monkeypatch.context() as patch:
        # Where Lightning tells users of "highest" to set another one.
        patch.setattr(CPUAccelerator, "setup_device", lambda accelerator, device: device == GPU and look(device))
        fit(**SHORT, run_dir=str(tmp_path))
    assert seen == ["high"] * 3, "set up to train, at a step, and set up for the last evaluation"
    assert torch.get_float32_matmul_precision() == "highest"
