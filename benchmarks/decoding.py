"""Peaks: this library's `decode` with sub-pixel positions against scikit-image without them."""

from __future__ import annotations

import numpy as np
import torch
from harness import Row, compare, main
from skimage.feature import peak_local_max

from keypoint_detection import heatmaps

SIZE = 256
COUNT = 20


def predicted(keypoints: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Heatmaps like those of a trained network: peaks of various heights over a low, noisy background."""
    logits = torch.logit(heatmaps.render(keypoints, (SIZE, SIZE), 3.0), eps=1e-3)
    return torch.sigmoid(logits + 0.3 * torch.randn(logits.shape, generator=generator))


def run() -> list[Row]:
    """Decode smooth and noisy heatmaps."""
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(16, 4, COUNT, 2, generator=generator) * SIZE
    rendered = heatmaps.render(keypoints, (SIZE, SIZE), 2.0)
    inputs = {"true heatmaps": rendered, "noisy heatmaps": predicted(keypoints, generator)}
    rows = []
    for name, maps in inputs.items():
        arrays = maps.numpy()

        def ours(maps: torch.Tensor = maps) -> tuple[torch.Tensor, torch.Tensor]:
            return heatmaps.decode(maps, COUNT)

        def baseline(arrays: np.ndarray = arrays) -> list[np.ndarray]:
            return [
                peak_local_max(heatmap, min_distance=1, threshold_abs=0.01, num_peaks=COUNT, exclude_border=False)
                for image in arrays
                for heatmap in image
            ]

        row = Row(
            name=f"decoding, {name}",
            work=f"16 x 4 x {SIZE} x {SIZE}, up to {COUNT} keypoints, sub-pixel",
            milliseconds=0,
            baseline="skimage peak_local_max, whole pixels",
            target=8,
        )
        rows.append(compare(row, ours, baseline))
    return rows


if __name__ == "__main__":
    main({"decoding": run}, __doc__)
