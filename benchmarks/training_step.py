"""One step of training: this library's detector against the same network in a plain PyTorch loop.

The baseline draws the heatmaps within the loop, keypoint by keypoint on the full grid, keeps PyTorch's default memory
format and trains with AdamW; the detector has the optimiser of its own defaults. Neither clips gradients or averages
weights. Both work on the same batch of images and keypoints.
"""

from __future__ import annotations

import copy
import math

import torch
from harness import DETECTOR_VALUES, Row, batch_of, compare, main, optimizer_of
from torch import Tensor
from torch.nn import functional as F

from keypoint_detection import heatmaps
from keypoint_detection.models.detector import KeypointDetector

IMAGES, CHANNELS, KEYPOINTS, SIZE = 4, 4, 20, 256


def draw(keypoints: Tensor, size: int, sigma: float, stride: int) -> Tensor:
    """Heatmaps as they are often drawn: a full grid of distances for every keypoint."""
    centres = heatmaps.cell_centres(math.ceil(size / stride), stride)
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    images = []
    for image in keypoints:
        channels = []
        for channel in image:
            heatmap = torch.zeros_like(rows)
            for x, y in channel:
                distances = (columns - x) ** 2 + (rows - y) ** 2
                heatmap = torch.maximum(heatmap, torch.exp(-distances / (2 * sigma**2)))
            channels.append(heatmap)
        images.append(torch.stack(channels))
    return torch.stack(images)


def run() -> list[Row]:
    """Time whole steps: heatmaps, forward, loss, backward and optimiser."""
    torch.manual_seed(0)
    detector = KeypointDetector([f"channel{i}" for i in range(CHANNELS)], **DETECTOR_VALUES)
    plain = copy.deepcopy(detector).to(memory_format=torch.contiguous_format)
    values = detector.hparams
    batch = batch_of(IMAGES, CHANNELS, KEYPOINTS, SIZE, SIZE)
    optimizer = optimizer_of(detector)
    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=values.learning_rate)

    def ours() -> None:
        optimizer.zero_grad()
        detector.training_step(batch)["loss"].backward()
        optimizer.step()

    def baseline() -> None:
        plain_optimizer.zero_grad()
        truth = draw(batch.keypoints, SIZE, values.heatmap_sigma, values.heatmap_stride)
        images = (batch.images - plain.backbone.image_mean) / plain.backbone.image_std
        logits = plain.head(plain.backbone.features(images))
        F.binary_cross_entropy_with_logits(logits, truth).backward()
        plain_optimizer.step()

    row = Row(
        name="a training step",
        work=f"Unet defaults, batch {IMAGES}, {SIZE}x{SIZE}, {CHANNELS} channels of {KEYPOINTS} keypoints, "
        f"{type(optimizer).__name__}",
        milliseconds=0,
        baseline=f"plain PyTorch loop with {type(plain_optimizer).__name__}, heatmaps drawn within it",
        target=1.3,
    )
    return [compare(row, ours, baseline)]


if __name__ == "__main__":
    main({"training_step": run}, __doc__)
