"""U-Net whose deepest level is a stack of residual blocks.

B batch, H W image, h w heatmap.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones.base import Backbone
from keypoint_detection.models.backbones.layers import (
    ConvBlock,
    DownBlock,
    ResidualBlock,
    UpBlock,
    check_channels,
    check_kernel_size,
)


class Unet(Backbone):
    """Encoder and decoder with skip connections, and residual blocks at the bottom.

    After Ronneberger et al. 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation. Level `i` works at
    a stride of `2 ** i` with `n_channels * 2 ** i` channels. The decoder stops at the stride of the heatmaps, and the
    encoder computes no level that is finer, so that a coarse heatmap costs a fraction of a fine one.

    Args:
        heatmap_stride: Pixels of the image per cell of the heatmap: 1, 2 or 4.
        n_channels_in: Channels of the images: 3 for RGB, 1 to average RGB to gray.
        n_channels: Channels at full resolution. Each level below has twice the channels of the one above it.
        n_downsampling_layers: How often the resolution is halved.
        n_resnet_blocks: Residual blocks at the lowest resolution.
        kernel_size: Side of the convolutions' kernels in cells, odd.
    """

    def __init__(
        self,
        *,
        heatmap_stride: int,
        n_channels_in: int = 3,
        n_channels: int = 8,
        n_downsampling_layers: int = 4,
        n_resnet_blocks: int = 3,
        kernel_size: int = 3,
    ) -> None:
        check_channels(n_channels_in, n_channels)
        check_kernel_size(kernel_size)
        finest = int(math.log2(heatmap_stride)) if heatmap_stride in (1, 2, 4) else 0
        if n_downsampling_layers < max(finest, 1):
            raise InputError(
                f"n_downsampling_layers is {n_downsampling_layers}, expected at least {max(finest, 1)} "
                f"for a heatmap_stride of {heatmap_stride}"
            )
        if n_resnet_blocks < 0:
            raise InputError(f"n_resnet_blocks is {n_resnet_blocks}, expected 0 or more")
        widths = [n_channels * 2**level for level in range(n_downsampling_layers + 1)]
        super().__init__(heatmap_stride, n_channels_in, widths[finest], 2**n_downsampling_layers)
        self.finest = finest
        # Above the finest level the encoder only halves: nothing is computed at a resolution that the output lacks.
        self.stem = nn.Sequential()
        channels = n_channels_in
        for level in range(1, finest + 1):
            self.stem.append(DownBlock(channels, widths[level], kernel_size))
            channels = widths[level]
        self.stem.append(ConvBlock(channels, widths[finest], kernel_size))
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for above, below in zip(widths[finest:-1], widths[finest + 1 :], strict=True):
            self.down.append(nn.Sequential(DownBlock(above, below, kernel_size), ConvBlock(below, below, kernel_size)))
            self.up.append(UpBlock(below, above, above, kernel_size))
        self.bottom = nn.Sequential(*(ResidualBlock(widths[-1], kernel_size) for _ in range(n_resnet_blocks)))

    def features(self, images: Tensor) -> Tensor:
        """See `Backbone.features`."""
        x = self.stem(images)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        x = self.bottom(x)
        for up, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = up(x, skip)
        return x

    def encoder_modules(self) -> list[nn.Module]:
        """See `Backbone.encoder_modules`."""
        return [self.stem, self.down]
