"""A detector whose heatmaps are the red and the green of the image, so that tests know what it has to find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from keypoint_detection.models.backbones import BACKBONES, Backbone
from keypoint_detection.models.detector import KeypointDetector


class RedAndGreen(Backbone):
    """Passes two colours on.

    Args:
        heatmap_stride: 1.
    """

    def __init__(self, *, heatmap_stride: int) -> None:
        super().__init__(heatmap_stride, n_channels_in=3, out_channels=2, size_divisor=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :2]


@contextmanager
def colour_checkpoint(folder: Path) -> Iterator[Path]:
    """A checkpoint with the channels `red` and `green` and the thresholds 0.5 and 0.6, while the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "RedAndGreen", RedAndGreen)
        detector = KeypointDetector(
            ["red", "green"], backbone_type="RedAndGreen", heatmap_sigma=2.0, heatmap_stride=1, learning_rate=1.0
        )
        with torch.no_grad():
            detector.head.weight.copy_(20 * torch.eye(2)[..., None, None])
            detector.head.bias.fill_(-10)
        detector.score_thresholds.copy_(torch.tensor([0.5, 0.6]))
        content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}
        torch.save(content | {"pytorch-lightning_version": "2.6.0"}, folder / "best.ckpt")
        yield folder / "best.ckpt"


def dots(size: tuple[int, int], points: list[tuple[float, float]], channel: int = 0) -> np.ndarray:
    """An image `(H, W, 3)` uint8 with smooth dots at points in continuous pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.zeros((*size, 3), dtype=np.uint8)
    for px, py in points:
        dot = 255 * np.exp(-((x + 0.5 - px) ** 2 + (y + 0.5 - py) ** 2) / 18)
        image[..., channel] = np.maximum(image[..., channel], dot.round().astype(np.uint8))
    return image
