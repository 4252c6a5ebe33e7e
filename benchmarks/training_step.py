"""One training step: this library's detector against the same network in a plain PyTorch loop.

The baseline draws the heatmaps within the loop, keypoint by keypoint on the full grid, keeps PyTorch's default memory
format and trains with AdamW; the detector uses its default optimiser. Neither clips gradients or averages weights. Both
work on the same batch of images and keypoints, in processes of their own: a training process keeps the memory that a
step frees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import PAUSE, InProcess, Row, batch_of, compare, main
from options import new_detector, step_of
from rendering import full_grid
from torch.nn import functional as F

from keypoint_detection.allocator import TRAINING, keep_freed_memory

IMAGES, CHANNELS, KEYPOINTS, SIZE = 4, 4, 20, 256
REPEATS = 15


def library_step() -> Callable[[], None]:
    """Heatmaps, forward, loss, backward and optimiser, as in training."""
    keep_freed_memory(*TRAINING)
    return step_of(new_detector(CHANNELS), batch_of(IMAGES, CHANNELS, KEYPOINTS, SIZE, SIZE))


def plain_step(keep: bool) -> Callable[[], None]:
    """The baseline, in a process that keeps freed memory or, like any other, gives it back."""
    if keep:
        keep_freed_memory(*TRAINING)
    plain = new_detector(CHANNELS).to(memory_format=torch.contiguous_format)
    values = plain.hparams
    batch = batch_of(IMAGES, CHANNELS, KEYPOINTS, SIZE, SIZE)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=values.learning_rate)

    def step() -> None:
        optimizer.zero_grad()
        truth = full_grid(batch.keypoints, SIZE, values.heatmap_sigma, values.heatmap_stride)
        images = (batch.images - plain.backbone.image_mean) / plain.backbone.image_std
        logits = plain.head(plain.backbone.features(images))
        F.binary_cross_entropy_with_logits(logits, truth).backward()
        optimizer.step()

    return step


def run() -> list[Row]:
    """Time whole steps."""
    rows = []
    for keep, target in ((False, 1.3), (True, None)):
        row = Row(
            name="a training step",
            work=f"Unet defaults, batch {IMAGES}, {SIZE}x{SIZE}, {CHANNELS} channels of {KEYPOINTS} keypoints",
            milliseconds=0,
            baseline="plain PyTorch loop, heatmaps drawn within it" + ("; freed memory kept" if keep else ""),
            target=target,
        )
        with InProcess(library_step) as ours, InProcess(plain_step, keep) as theirs:
            rows.append(compare(row, ours, theirs, REPEATS, PAUSE))
    return rows


if __name__ == "__main__":
    main({"training_step": run}, __doc__)
