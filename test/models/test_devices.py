from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import keypoint_detection.models
from keypoint_detection.models.devices import to_device


@pytest.mark.parametrize(("device", "waits"), [("cuda", False), ("mps", True), ("xpu", True), ("cpu", True)])
def test_a_copy_is_waited_for_but_on_cuda(device, waits):
    asked = []
    tensor = SimpleNamespace(to=lambda to, non_blocking: asked.append((to.type, non_blocking)) or "there")
    assert to_device(tensor, torch.device(device)) == "there"
    assert asked == [(device, not waits)]


def test_nothing_else_of_the_models_decides_whether_to_wait():
    files = Path(keypoint_detection.models.__path__[0]).rglob("*.py")
    assert [file.name for file in files if "non_blocking" in file.read_text(encoding="utf-8")] == ["devices.py"]
