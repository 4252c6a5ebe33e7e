"""Trains with all flags of the library, and with a backbone of this project: `python train.py --help_all`."""

from __future__ import annotations

import sys

from torch import Tensor, nn
from torch.nn import functional as F

from keypoint_detection import cli
from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones import BACKBONES, Backbone
from keypoint_detection.models.backbones.layers import ConvBlock, DownBlock


class Pyramid(Backbone):
    """Levels that each halve the resolution; all are upsampled to the finest one and added.

    Args:
        heatmap_stride: Pixels of the image per cell of the heatmap: 1, 2 or 4.
        n_channels: Channels of every level.
        n_levels: Number of levels.
    """

    def __init__(self, *, heatmap_stride: int, n_channels: int = 32, n_levels: int = 4) -> None:
        if n_channels < 2 or n_levels < 1:
            raise InputError(f"n_channels is {n_channels} and n_levels is {n_levels}, expected at least 2 and 1")
        super().__init__(heatmap_stride, 3, n_channels, heatmap_stride * 2 ** (n_levels - 1))
        steps = heatmap_stride.bit_length() - 1
        downs = [DownBlock(n_channels if step else 3, n_channels, kernel_size=3) for step in range(steps)]
        self.stem = nn.Sequential(*downs, ConvBlock(n_channels if downs else 3, n_channels, kernel_size=3))
        self.levels = nn.ModuleList(
            nn.Sequential(DownBlock(n_channels, n_channels, 3), ConvBlock(n_channels, n_channels, 3))
            for _ in range(n_levels - 1)
        )

    def features(self, images: Tensor) -> Tensor:
        """See `Backbone.features`."""
        finest = level = self.stem(images)
        total = finest
        for step in self.levels:
            level = step(level)
            total = total + F.interpolate(level, finest.shape[-2:], mode="bilinear", align_corners=False)
        return total


BACKBONES["Pyramid"] = Pyramid

if __name__ == "__main__":
    sys.exit(cli.run("keypoint_detection.train.train", sys.argv[1:]))
