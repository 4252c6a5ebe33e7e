"""A plain stack of dilated convolutions: no encoder, no decoder.

B batch, H W image, h w heatmap.
"""

from __future__ import annotations

from torch import Tensor, nn

from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones.base import Backbone
from keypoint_detection.models.backbones.layers import ConvBlock, DownBlock, check_channels, check_kernel_size


class DilatedCnn(Backbone):
    """Convolutions whose dilation grows and shrinks again, all at the resolution of the heatmaps.

    After Yu and Koltun 2016, Multi-Scale Context Aggregation by Dilated Convolutions. Small and simple: it has a large
    receptive field at full resolution, and is expensive at stride 1.

    Args:
        heatmap_stride: Pixels of the image per cell of the heatmap: 1, 2 or 4.
        n_channels_in: Channels of the images: 3 for RGB, 1 to average RGB to gray.
        n_channels: Channels of every layer.
        kernel_size: Side length of the convolution kernels in cells, odd and at least 3.
        dilations: Dilation of each layer in cells; their number is the number of layers.
    """

    def __init__(
        self,
        *,
        heatmap_stride: int,
        n_channels_in: int = 3,
        n_channels: int = 32,
        kernel_size: int = 3,
        dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 2, 1),
    ) -> None:
        check_channels(n_channels_in, n_channels)
        check_kernel_size(kernel_size)
        if not dilations or min(dilations) < 1:
            raise InputError(f"dilations are {list(dilations)}, expected one or more integers of at least 1")
        super().__init__(heatmap_stride, n_channels_in, n_channels, size_divisor=heatmap_stride)
        layers: list[nn.Module] = []
        channels = n_channels_in
        for _ in range(heatmap_stride.bit_length() - 1):
            layers.append(DownBlock(channels, n_channels, kernel_size))
            channels = n_channels
        for dilation in dilations:
            layers.append(ConvBlock(channels, n_channels, kernel_size, dilation))
            channels = n_channels
        self.layers = nn.Sequential(*layers)

    def features(self, images: Tensor) -> Tensor:
        """See `Backbone.features`."""
        return self.layers(images)
