"""From predicted heatmaps to keypoints, in batches whose images differ in size.

B batch, C channels, N decoded keypoints, H W image, h w heatmap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from keypoint_detection import heatmaps


class Detections(NamedTuple):
    """Keypoints that were found.

    Attributes:
        xy: `(B, C, N, 2)` in continuous pixels of the images, in descending order of score, NaN for none.
        scores: `(B, C, N)` in [0, 1], 0 for none.
    """

    xy: Tensor
    scores: Tensor


def predicted_heatmaps(logits: Tensor, images: Tensor, sizes: Tensor | None, stride: int) -> Tensor:
    """Turn logits into heatmaps.

    Args:
        logits: `(B, C, h, w)`.
        images: `(B, 3, H, W)` the images that they come from.
        sizes: `(B, 2)` height and width in pixels of the part of each image that is not padding, None without padding.
        stride: Pixels per cell of the heatmaps.

    Returns:
        `(B, C, h, w)` float32 in [0, 1], 0 in padding.
    """
    probabilities = logits.float().sigmoid()
    if sizes is None:
        return probabilities
    mask = heatmaps.valid_mask(sizes, (images.shape[-2], images.shape[-1]), stride)
    return torch.where(mask, probabilities, 0.0)


def decode_detections(
    probabilities: Tensor, sizes: Tensor | None, caps: list[int], min_distance: float, stride: int
) -> Detections:
    """Decode heatmaps within the part of each image that is not padding, as if it had come alone.

    Args:
        probabilities: `(B, C, h, w)` in [0, 1].
        sizes: `(B, 2)` height and width in pixels of the part of each image that is not padding, None without padding.
        caps: Most keypoints of each of the C channels.
        min_distance: Of two peaks of one channel that are this close, in pixels, only the higher one is decoded.
        stride: Pixels per cell of the heatmaps.

    Returns:
        Keypoints, where N is the largest of the caps.
    """
    count = max(caps)
    if sizes is None:
        xy, scores = heatmaps.decode(probabilities, count, min_distance=min_distance, stride=stride)
    else:
        xy = probabilities.new_empty(*probabilities.shape[:2], count, 2)
        scores = probabilities.new_empty(*probabilities.shape[:2], count)
        # Usually one size; a crop makes the image's own border the border of its heatmap.
        for height, width in sizes.unique(dim=0).tolist():
            chosen = ((sizes[:, 0] == height) & (sizes[:, 1] == width)).nonzero().flatten()
            h, w = heatmaps.heatmap_size((height, width), stride)
            crop = probabilities[chosen, :, :h, :w]
            xy[chosen], scores[chosen] = heatmaps.decode(crop, count, min_distance=min_distance, stride=stride)
    caps_tensor = torch.tensor(caps, device=xy.device)
    beyond = torch.arange(count, device=xy.device) >= caps_tensor[:, None]
    return Detections(xy.masked_fill(beyond[..., None], math.nan), scores.masked_fill(beyond, 0.0))
