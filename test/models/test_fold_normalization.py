import copy

import pytest
import torch
from torch import nn

from keypoint_detection.models.backbones import build_backbone
from keypoint_detection.models.backbones.layers import BatchNorm, ConvBlock, ResidualBlock, fold_normalization

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
    folded = fold_normalization(copy.deepcopy(backbone))
    assert norms(backbone)
    assert not norms(folded)
    images = torch.rand(2, 3, 50, 70, dtype=torch.float64)
    with torch.no_grad():
        expected, found = backbone(images), folded(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected)


def test_group_normalisation_stays():
    block = fold_normalization(ResidualBlock(8, 3).eval())
    assert len(norms(block)) == 2


class OtherOrder(nn.Sequential):
    """Computes in another order than it holds its modules."""

    def forward(self, x):
        return self[0](self[1](x))


class StandardisedConv(nn.Conv2d):
    """Ignores the scale of its kernels."""

    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


class NormAndActivation(nn.BatchNorm2d):
    """Is more than a normalisation."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(StandardisedConv(4, 4, 3), BatchNorm(4)),
        nn.Sequential(nn.Conv2d(4, 4, 3), NormAndActivation(4)),
        OtherOrder(nn.Conv2d(4, 4, 3), BatchNorm(4)),
        nn.Sequential(BatchNorm(4), nn.Conv2d(4, 4, 3)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), BatchNorm(4)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
    ids=["own kernels", "activation", "own forward", "norm first", "something between", "statistics of the batch"],
)
def test_what_may_not_be_folded_stays(module):
    module.eval()
    images = torch.rand(2, 4, 9, 9)
    expected = module(images)
    assert len(norms(fold_normalization(module))) == 1
    assert torch.equal(module(images), expected)


def test_layers_after_each_other_in_a_block_are_folded_with_their_bias():
    torch.manual_seed(0)
    block = with_statistics(nn.Sequential(nn.Conv2d(3, 5, 3), BatchNorm(5), nn.ReLU(), ConvBlock(5, 8, 1)))
    images = torch.rand(1, 3, 9, 9)
    expected = block(images)
    torch.testing.assert_close(fold_normalization(block)(images), expected)
    assert len(norms(block)) == 1  # the block's own is by groups
