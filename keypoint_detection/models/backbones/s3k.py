"""The small residual encoder-decoder of S3K.

B batch, H W image, h w heatmap.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones.base import Backbone
from keypoint_detection.models.backbones.layers import (
    ConvBlock,
    DownBlock,
    ResidualBlock,
    check_channels,
    check_kernel_size,
    normalization,
)


class S3K(Backbone):
    """Two strided convolutions, residual blocks at a quarter of the resolution, and transposed convolutions back up.

    After Vecerik et al. 2020, S3K: Self-Supervised Semantic Keypoints for Robotic Manipulation via Multi-View
    Consistency: the same layout, but with skip connections at each resolution, group instead of batch normalisation,
    and adjustable widths. The decoder stops at the stride of the heatmaps.

    Args:
        heatmap_stride: Pixels of the image per cell of the heatmap: 1, 2 or 4.
        n_channels_in: Channels of the images: 3 for RGB, 1 to average RGB to gray.
        n_channels: Channels of the residual blocks and the decoder; the first layers have a quarter and a half as many.
        n_resnet_blocks: Residual blocks at a quarter of the resolution.
        kernel_size: Side length of the convolution kernels in cells, odd and at least 3.
    """

    def __init__(
        self,
        *,
        heatmap_stride: int,
        n_channels_in: int = 3,
        n_channels: int = 32,
        n_resnet_blocks: int = 3,
        kernel_size: int = 3,
    ) -> None:
        check_channels(n_channels_in, n_channels)
        check_kernel_size(kernel_size)
        if n_resnet_blocks < 0:
            raise InputError(f"n_resnet_blocks is {n_resnet_blocks}, expected 0 or more")
        super().__init__(heatmap_stride, n_channels_in, n_channels, size_divisor=4)
        half, quarter = max(n_channels // 2, 2), max(n_channels // 4, 2)
        # With heatmaps at stride 4 there is no decoder, and at stride 2 none at full resolution, so no skips there.
        self.down0 = ConvBlock(n_channels_in, quarter, kernel_size)
        self.down1 = DownBlock(quarter, half, kernel_size)
        self.down2 = DownBlock(half, n_channels, kernel_size)
        self.blocks = nn.Sequential(*(ResidualBlock(n_channels, kernel_size) for _ in range(n_resnet_blocks)))
        self.up1 = _Up(n_channels, half, kernel_size) if heatmap_stride <= 2 else None
        self.up0 = _Up(n_channels, quarter, kernel_size) if heatmap_stride == 1 else None

    def features(self, images: Tensor) -> Tensor:
        """See `Backbone.features`."""
        full = self.down0(images)
        half = self.down1(full)
        x = self.blocks(self.down2(half))
        if self.up1 is not None:
            x = self.up1(x, half)
        if self.up0 is not None:
            x = self.up0(x, full)
        return x

    def encoder_modules(self) -> list[nn.Module]:
        """See `Backbone.encoder_modules`."""
        return [self.down0, self.down1, self.down2, self.blocks]


class _Up(nn.Module):
    """Transposed convolution, concatenation with the skip and convolution, `(B, C, H, W) -> (B, C, 2 H, 2 W)`."""

    def __init__(self, channels: int, skip_channels: int, kernel_size: int) -> None:
        super().__init__()
        # An even kernel covers the output evenly, and needs no output padding.
        self.up = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, kernel_size + 1, stride=2, padding=kernel_size // 2, bias=False),
            normalization(channels),
            nn.ReLU(inplace=True),
        )
        self.merge = ConvBlock(channels + skip_channels, channels, kernel_size)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Upsample `x` and merge it with `skip`."""
        return self.merge(torch.cat((self.up(x), skip), dim=1))
