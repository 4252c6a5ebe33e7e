"""One step of training: this library's detector against the same network in a plain PyTorch loop.

The baseline draws the heatmaps within the loop, keypoint by keypoint on the full grid, keeps PyTorch's default memory
format and trains with AdamW; the detector has the optimiser of its own defaults. Neither clips gradients or averages
weights. Both work on the same batch of images and keypoints.
"""

from __future__ import annotations

import copy

import torch
from harness import Row, batch_of, compare, main, optimizer_of
from options import new_detector
from rendering import full_grid
from torch.nn import functional as F

IMAGES, CHANNELS, KEYPOINTS, SIZE = 4, 4, 20, 256


def run() -> list[Row]:
    """Time whole steps: heatmaps, forward, loss, backward and optimiser."""
    detector = new_detector(CHANNELS)
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
        truth = full_grid(batch.keypoints, SIZE, values.heatmap_sigma, values.heatmap_stride)
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
