"""One step of training: this library's detector against the same network in a plain PyTorch loop.

The baseline draws the heatmaps within the loop, keypoint by keypoint on the full grid, and keeps PyTorch's defaults for
memory format and optimiser. Both work on the same batch of images and keypoints.
"""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import torch
from harness import DETECTOR_VALUES, Row, compare, main
from torch import Tensor
from torch.nn import functional as F

from keypoint_detection import heatmaps
from keypoint_detection.batch import Batch
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.optimization import build_optimizer, parameter_groups

IMAGES, CHANNELS, KEYPOINTS, SIZE = 4, 4, 20, 256


def make_batch() -> Batch:
    """Noise with keypoints at random."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.rand(IMAGES, 3, SIZE, SIZE, generator=generator),
        keypoints=torch.rand(IMAGES, CHANNELS, KEYPOINTS, 2, generator=generator) * SIZE,
        heatmaps=None,
        sizes=torch.full((IMAGES, 2), SIZE),
        labelled=torch.ones(IMAGES, CHANNELS, dtype=torch.bool),
        transforms=torch.eye(3, dtype=torch.float64).expand(IMAGES, 3, 3),
        indices=torch.arange(IMAGES),
    )


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
    batch = make_batch()
    groups = parameter_groups(
        detector, [], learning_rate=values.learning_rate, weight_decay=values.weight_decay, encoder_factor=1.0
    )
    optimizer = build_optimizer(groups, SimpleNamespace(precision="32-true", gradient_clip_val=None))
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
        work=f"Unet defaults, batch {IMAGES}, {SIZE}x{SIZE}, {CHANNELS} channels of {KEYPOINTS} keypoints",
        milliseconds=0,
        baseline="plain PyTorch loop, heatmaps drawn within it",
        target=1.3,
    )
    return [compare(row, ours, baseline)]


if __name__ == "__main__":
    main({"training_step": run}, __doc__)
