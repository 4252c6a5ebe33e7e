"""From a batch to the targets of the loss.

B batch, C channels, K keypoints, H W image, h w heatmap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keypoint_detection import heatmaps
from keypoint_detection.batch import Batch
from keypoint_detection.models.devices import to_device
from keypoint_detection.models.losses import LossTargets


def loss_targets(batch: Batch, sigma: float, stride: int) -> LossTargets:
    """Collect the targets of the loss, and render the heatmaps if the batch has none.

    Args:
        batch: Images with keypoints.
        sigma: Standard deviation of the Gaussians in pixels of the images.
        stride: Pixels of the images per cell.

    Returns:
        `(B, C, ceil(H / stride), ceil(W / stride))` heatmaps, positive cells and mask. The mask leaves out padding and
        channels that are not labelled.
    """
    size = (batch.images.shape[-2], batch.images.shape[-1])
    truth = batch.heatmaps
    if truth is None:
        truth = heatmaps.render(batch.keypoints, size, sigma, stride)
    sizes = to_device(batch.sizes, batch.images.device)
    mask = heatmaps.valid_mask(sizes, size, stride) & batch.labelled[:, :, None, None]
    return LossTargets(truth, positive_cells(batch.keypoints, sizes, size, stride), mask)


def positive_cells(keypoints: Tensor, sizes: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Mark the cells that hold a keypoint.

    Args:
        keypoints: `(B, C, K, 2)` xy in pixels, NaN for none.
        sizes: `(B, 2)` int64 height and width in pixels of the part of each image that is not padding. A keypoint on or
            beyond its border counts as in the nearest cell of this part.
        size: Height and width of the padded batch in pixels.
        stride: Pixels per cell.

    Returns:
        `(B, C, ceil(H / stride), ceil(W / stride))` bool.
    """
    height, width = heatmaps.heatmap_size(size, stride)
    cells = heatmaps.cell_indices(keypoints, sizes[:, None], stride)
    # Missing keypoints go to one extra cell, which is cut off.
    flat = torch.where(cells[..., 0] < 0, height * width, cells[..., 1] * width + cells[..., 0])
    grid = torch.zeros(*keypoints.shape[:2], height * width + 1, dtype=torch.bool, device=keypoints.device)
    return grid.scatter_(2, flat, True)[..., :-1].unflatten(2, (height, width))
