"""Heatmaps: this library's `render` against one full grid of distances per keypoint."""

from __future__ import annotations

import torch
from harness import Row, compare, main
from torch import Tensor

from keypoint_detection import heatmaps

SIZE = 256
SIGMA = 2.0


def full_grid(keypoints: Tensor, size: int, sigma: float, stride: int = 1) -> Tensor:
    """The plain way to render: `(B, C, K, 2)` -> `(B, C, h, w)`, a Gaussian over the whole map for every keypoint."""
    centres = (torch.arange(-(-size // stride)) + 0.5) * stride
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    images = []
    for image in keypoints:
        channels = []
        for channel in image:
            heatmap = torch.zeros_like(x)
            for keypoint in channel:
                squared = (x - keypoint[0]) ** 2 + (y - keypoint[1]) ** 2
                heatmap = torch.maximum(heatmap, torch.exp(-squared / (2 * sigma**2)))
            channels.append(heatmap)
        images.append(torch.stack(channels))
    return torch.stack(images)


def run() -> list[Row]:
    """Render dense and sparse heatmaps."""
    torch.manual_seed(0)
    rows = []
    for name, channels, count, target in (("dense", 4, 20, 120), ("sparse", 16, 1, 9)):
        keypoints = torch.rand(16, channels, count, 2) * SIZE

        def ours(keypoints: Tensor = keypoints) -> Tensor:
            return heatmaps.render(keypoints, (SIZE, SIZE), SIGMA)

        def baseline(keypoints: Tensor = keypoints) -> Tensor:
            return full_grid(keypoints, SIZE, SIGMA)

        error = (ours() - baseline()).abs().max().item()
        row = Row(
            name=f"rendering, {name}",
            work=f"16 images x {channels} channels x {count} keypoints, {SIZE}x{SIZE}, sigma {SIGMA:g}",
            milliseconds=0,
            baseline="full grid per keypoint",
            target=target,
            note=f"largest difference {error:.0e}",
        )
        rows.append(compare(row, ours, baseline))

    shape = (16, 16, SIZE, SIZE)
    row = Row(
        name="rendering, sparse",
        work=rows[-1].work,
        milliseconds=0,
        baseline="allocate and fill with 0",
        target=1 / 1.3,
        at_most=True,
    )
    rows.append(compare(row, ours, lambda: torch.zeros(shape), repeats=21))
    return rows


if __name__ == "__main__":
    main({"rendering": run}, __doc__)
