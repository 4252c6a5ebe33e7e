"""Building blocks that the backbones share.

B batch, H W image or feature map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keypoint_detection.errors import InputError


def normalization(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018) in up to 8 groups of at least 4 channels, where that divides.

    It does not look at other images of the batch, so that batches of one train as well, and that training and
    inference compute the same.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, min(8, channels // 4))), channels)


def check_channels(n_channels_in: int, n_channels: int) -> None:
    """Check numbers of channels. One value in all, as a 1x1 image of one channel has, cannot be normalised.

    Raises:
        InputError: names the argument and its value.
    """
    for name, value, least in (("n_channels_in", n_channels_in, 1), ("n_channels", n_channels, 2)):
        if value < least:
            raise InputError(f"{name} is {value}, expected an integer of at least {least}")


def check_kernel_size(kernel_size: int) -> None:
    """Check that a kernel is odd, so that it is centred on its cell.

    Raises:
        InputError: for an even size or one below 1.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"kernel_size is {kernel_size}, expected an odd integer such as 3")


class ConvBlock(nn.Sequential):
    """Convolution, normalisation and ReLU, `(B, in, H, W) -> (B, out, H, W)`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
            normalization(out_channels),
            nn.ReLU(inplace=True),
        )


class DownBlock(nn.Sequential):
    """Strided convolution, normalisation and ReLU, `(B, in, H, W) -> (B, out, H / 2, W / 2)` for even H and W."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride=2, padding=kernel_size // 2, bias=False),
            normalization(out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, `(B, C, H, W) -> (B, C, H, W)`.

    After He et al. 2016, Deep Residual Learning for Image Recognition. A new block passes its input on: the scale of
    its last normalisation starts at 0 (Goyal et al. 2017).
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.block1 = ConvBlock(channels, channels, kernel_size)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm2 = normalization(channels)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the block computes to its input."""
        return F.relu(x + self.norm2(self.conv2(self.block1(x))))


class UpBlock(nn.Module):
    """Doubles the resolution and merges the encoder's features of that resolution.

    `(B, in, H, W), (B, skip, 2 H, 2 W) -> (B, out, 2 H, 2 W)`.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        # The 1x1 convolution comes before the upsampling, where it costs a quarter.
        self.reduce = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.merge = ConvBlock(out_channels + skip_channels, out_channels, kernel_size)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Upsample `x` and merge it with `skip`."""
        x = F.interpolate(self.reduce(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.merge(torch.cat((x, skip), dim=1))
