import pytest
import torch
from torch import nn

from keypoint_detection.models import winograd
from keypoint_detection.models.detector import KeypointDetector


@pytest.fixture
def everywhere(monkeypatch):
    """Takes Winograd's algorithm also where it is not the faster one."""
    if not torch.backends.nnpack.is_available():
        monkeypatch.setattr(torch, "_nnpack_spatial_convolution", direct, raising=False)
    monkeypatch.setattr(winograd, "is_faster", lambda: True)


def direct(x, weight, bias, padding, stride):
    return nn.functional.conv2d(x, weight, bias, stride, padding)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 5), (33, 18)])
@pytest.mark.parametrize("images", [1, 2, 17])
def test_a_convolution_gives_what_the_sum_of_products_gives(everywhere, size, images):
    torch.manual_seed(0)
    convolution = nn.Conv2d(32, 40, 3, padding=1)
    fast = winograd.with_winograd(nn.Sequential(convolution))[0]
    assert isinstance(fast, winograd.WinogradConv2d)
    x = torch.randn(images, 32, *size).to(memory_format=torch.channels_last)
    exact = nn.functional.conv2d(x.double(), convolution.weight.double(), convolution.bias.double(), padding=1)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), exact.float(), atol=1e-4, rtol=0)


def test_only_suited_convolutions_are_replaced(everywhere):
    layers = {
        "suited": nn.Conv2d(32, 32, 3, padding=1, bias=False),
        "few channels": nn.Conv2d(16, 32, 3, padding=1),
        "stride": nn.Conv2d(32, 32, 3, padding=1, stride=2),
        "no padding": nn.Conv2d(32, 32, 3),
        "dilation": nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        "groups": nn.Conv2d(32, 32, 3, padding=1, groups=2),
        "reflection": nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
        "kernel": nn.Conv2d(32, 32, 5, padding=2),
    }
    network = nn.ModuleDict(layers)
    replaced = winograd.with_winograd(network)
    assert [n for n, layer in replaced.items() if isinstance(layer, winograd.WinogradConv2d)] == ["suited"]
    assert all(type(layer) is nn.Conv2d for layer in network.values())  # the network itself stays as it was


def test_a_network_gives_the_same_heatmaps(everywhere):
    torch.manual_seed(0)
    detector = KeypointDetector(["a", "b"]).eval()
    images = torch.rand(2, 3, 90, 130)
    with torch.inference_mode():
        fast = winograd.with_winograd(detector)
        torch.testing.assert_close(fast(images).sigmoid(), detector(images).sigmoid(), atol=1e-5, rtol=0)


def test_nothing_changes_where_nothing_is_gained(monkeypatch):
    network = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1))
    monkeypatch.setattr(winograd, "is_faster", lambda: False)
    assert winograd.with_winograd(network) is network
