"""U-Net of residual blocks whose decoder stops at the resolution of the heatmaps.

B batch, H W image, h w heatmap.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones.base import Backbone
from keypoint_detection.models.backbones.layers import (
    BatchNorm,
    ConvBlock,
    DownBlock,
    ResidualBlock,
    UpBlock,
    check_channels,
    check_kernel_size,
    replace_normalization,
)


class Unet(Backbone):
    """Encoder and decoder of residual blocks with skip connections between them.

    After Ronneberger et al. 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation. Level `i` works at
    a stride of `2 ** i` pixels. The decoder stops at the stride of the heatmaps. At strides below 4, the encoder has a
    single convolution per level, and none at full resolution unless the heatmaps have stride 1. So with heatmaps at
    stride 4, most of the computation happens on a sixteenth of the pixels.

    Args:
        heatmap_stride: Pixels of the image per cell of the heatmap: 1, 2 or 4.
        n_channels_in: Channels of the images: 3 for RGB, 1 to average RGB to gray.
        n_channels: Channels at stride 4. Finer levels have a half and a quarter as many; each coarser level has twice
            as many.
        n_channels_out: Channels of the output at stride 4; half as many at stride 2, a quarter at 1. A last 1x1
            convolution computes them from the decoder's channels, so that the head has more features to choose from if
            there are many keypoint channels. 0 keeps the decoder's own.
        max_channels: Maximum number of channels at any level.
        n_downsampling_layers: Number of times that the resolution is halved.
        n_resnet_blocks: Residual blocks at the lowest resolution. The levels above it have one each in the encoder and
            the decoder, those finer than stride 4 only in the decoder.
        kernel_size: Side length of the convolution kernels in cells, odd and at least 3.
        normalization: `batch` costs nothing at prediction and in an ONNX file, where it is merged into the
            convolutions. `group` does not depend on the other images of a batch.
    """

    def __init__(
        self,
        *,
        heatmap_stride: int,
        n_channels_in: int = 3,
        n_channels: int = 16,
        n_channels_out: int = 64,
        max_channels: int = 128,
        n_downsampling_layers: int = 5,
        n_resnet_blocks: int = 2,
        kernel_size: int = 3,
        normalization: Literal["batch", "group"] = "batch",
    ) -> None:
        check_channels(n_channels_in, n_channels)
        check_kernel_size(kernel_size)
        finest = heatmap_stride.bit_length() - 1
        if n_downsampling_layers < max(finest, 1):
            raise InputError(
                f"n_downsampling_layers is {n_downsampling_layers}, expected at least {max(finest, 1)} "
                f"for a heatmap_stride of {heatmap_stride}"
            )
        if max_channels < 2 or n_resnet_blocks < 0:
            raise InputError(
                f"max_channels is {max_channels} and n_resnet_blocks is {n_resnet_blocks}, expected at least 2 and 0"
            )
        if n_channels_out < 0 or n_channels_out == 1:  # a single value cannot be normalised
            raise InputError(f"n_channels_out is {n_channels_out}, expected 0 or at least 2")
        if normalization not in ("batch", "group"):
            raise InputError(f"normalization is {normalization!r}, expected batch or group")
        levels = range(n_downsampling_layers + 1)
        widths = [max(2, min(max_channels, n_channels * 2**level // 4)) for level in levels]
        out_channels = max(2, n_channels_out * heatmap_stride // 4) if n_channels_out else widths[finest]
        super().__init__(heatmap_stride, n_channels_in, out_channels, size_divisor=2**n_downsampling_layers)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        channels = n_channels_in
        for level in levels:
            down = DownBlock if level else ConvBlock
            blocks = [] if level == 0 and finest else [down(channels, widths[level], kernel_size)]
            if level == n_downsampling_layers:
                blocks += [ResidualBlock(widths[level], kernel_size) for _ in range(n_resnet_blocks)]
            elif level >= max(finest, 2):
                blocks += [ResidualBlock(widths[level], kernel_size)]
            self.encoder.append(nn.Sequential(*blocks))
            channels = widths[level] if blocks else channels
        for level in reversed(levels[finest:-1]):
            up = UpBlock(widths[level + 1], widths[level], widths[level], kernel_size)
            self.decoder.append(nn.Sequential(up, ResidualBlock(widths[level], kernel_size)))
        self.output = ConvBlock(widths[finest], out_channels, kernel_size=1) if n_channels_out else nn.Identity()
        if normalization == "batch":
            replace_normalization(self, nn.GroupNorm, lambda norm: BatchNorm(norm.num_channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """See `Backbone.features`."""
        x = images
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        skips.pop()
        for up, block in self.decoder:
            x = block(up(x, skips.pop()))
        return self.output(x)

    def encoder_modules(self) -> list[nn.Module]:
        """See `Backbone.encoder_modules`."""
        return [self.encoder]
