from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from keypoint_detection.models.backbones import build_backbone
from keypoint_detection.models.backbones.layers import BatchNorm, fold_normalization
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.predict import TorchNetwork

NORMS = (nn.BatchNorm2d, nn.GroupNorm)


def with_statistics(module):
    """Normalisations as after a training: nothing at 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, lowest in (
                (norm.running_mean, -1),
                (norm.running_var, 0.5),
                (norm.weight, 0.5),
                (norm.bias, -1),
            ):
                values.data.copy_(lowest + torch.rand(values.shape, generator=generator))
    return module.eval()


def norms(module):
    return [child for child in module.modules() if isinstance(child, NORMS)]


@pytest.mark.parametrize("stride", [1, 4])
def test_a_folded_unet_computes_the_same_without_a_normalisation(stride):
    torch.manual_seed(0)
    backbone = with_statistics(build_backbone("Unet", stride, {}).double())
    folded = fold_normalization(backbone)
    assert norms(backbone)
    assert not norms(folded)
    images = torch.rand(2, 3, 50, 70, dtype=torch.float64)
    with torch.no_grad():
        expected, found = backbone(images), folded(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected)


class Pair(nn.Module):
    """Says which of its modules follow one another."""

    conv_norm_pairs = (("conv", "norm"),)

    def __init__(self, conv, norm):
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x):
        return self.norm(self.conv(x))


class OtherOrder(Pair):
    """Inherits that, and computes in another order."""

    def forward(self, x):
        return self.conv(self.norm(x))


class StandardisedConv(nn.Conv2d):
    """Ignores the scale of its kernels."""

    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


class NormAndActivation(nn.BatchNorm2d):
    """Is more than a normalisation."""

    def forward(self, x):
        return super().forward(x).relu()


def hooked(module):
    module.register_forward_hook(lambda module, inputs, output: output * 2)
    return module


@pytest.mark.parametrize(
    "module",
    [
        Pair(StandardisedConv(4, 4, 3), BatchNorm(4)),
        Pair(nn.Conv2d(4, 4, 3), NormAndActivation(4)),
        OtherOrder(nn.Conv2d(4, 4, 3), BatchNorm(4)),
        Pair(hooked(nn.Conv2d(4, 4, 3)), BatchNorm(4)),
        Pair(nn.Conv2d(4, 4, 3), hooked(BatchNorm(4))),
        Pair(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        Pair(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)),
        nn.Sequential(nn.Conv2d(4, 4, 3), BatchNorm(4)),
        Pair(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), BatchNorm(4)),
    ],
    ids=[
        "own kernels", "activation", "own order", "hook of the convolution", "hook of the norm",
        "statistics of the batch", "group", "says nothing", "weight norm",
    ],
)  # fmt: skip
def test_what_may_not_be_folded_stays_the_module_that_it_is(module):
    with_statistics(module) if type(module) is OtherOrder else module.eval()
    assert fold_normalization(module) is module
    assert len(norms(module)) == 1


def test_a_module_in_training_stays():
    module = Pair(nn.Conv2d(4, 4, 3), BatchNorm(4)).train()
    assert fold_normalization(module) is module


def test_a_pair_is_folded_with_the_bias_of_its_convolution():
    torch.manual_seed(0)
    pair = with_statistics(Pair(nn.Conv2d(3, 5, 3), BatchNorm(5)))
    images = torch.rand(1, 3, 9, 9)
    expected = pair(images)
    folded = fold_normalization(pair)
    torch.testing.assert_close(folded(images), expected)
    assert torch.equal(pair(images), expected)
    assert (len(norms(pair)), len(norms(folded))) == (1, 0)


def test_a_predictor_computes_with_a_folded_copy(tmp_path):
    torch.manual_seed(0)
    detector = KeypointDetector(["a"], heatmap_sigma=4.0, heatmap_stride=4, learning_rate=1e-3)
    detector.head.weight.data.normal_(std=0.5)
    detector.head.bias.data.fill_(-1.0)
    with_statistics(detector)
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}
    torch.save(content | {"pytorch-lightning_version": "2.6.0"}, tmp_path / "best.ckpt")
    network = TorchNetwork(tmp_path / "best.ckpt", device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    with mock.patch.object(KeypointDetector, "detect", autospec=True, side_effect=KeypointDetector.detect) as detect:
        ((xy, scores),) = network.detect([image])
        (folded, *_) = detect.call_args.args
    images = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    expected_xy, expected_scores = detector.detect(images)
    found = expected_scores[0] > 0.02
    assert found.sum() > 1
    assert not norms(folded.backbone)
    assert torch.equal(network.detector(images), detector(images))
    np.testing.assert_allclose(scores, expected_scores[0], atol=1e-4)
    np.testing.assert_allclose(xy[found], expected_xy[0][found], atol=0.05)
