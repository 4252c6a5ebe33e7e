"""From predicted heatmaps to keypoints, in batches of images of different sizes.

B batch, C channels, N decoded keypoints, H W image, h w heatmap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from keypoint_detection import heatmaps
from keypoint_detection.models.devices import to_device


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
        images: `(B, 3, H, W)`, the images that they were computed from.
        sizes: `(B, 2)` height and width in pixels of the part of each image that is not padding, None without padding.
        stride: Pixels per cell of the heatmaps.

    Returns:
        `(B, C, h, w)` float32 in [0, 1], 0 in padding.
    """
    probabilities = logits.float().sigmoid()
    if sizes is None:
        return probabilities
    sizes = to_device(sizes, images.device)
    mask = heatmaps.valid_mask(sizes, (images.shape[-2], images.shape[-1]), stride)
    return torch.where(mask, probabilities, 0.0)


def decode_detections(
    probabilities: Tensor, sizes: Tensor, caps: list[int], min_distance: float, stride: int
) -> Detections:
    """Decode heatmaps within the part of each image that is not padding, as if there were no padding.

    Args:
        probabilities: `(B, C, h, w)` in [0, 1].
        sizes: `(B, 2)` height and width in pixels of the part of each image that is not padding. If it is on the CPU,
            reading it does not wait for a device.
        caps: Maximum number of keypoints of each of the C channels.
        min_distance: If the cells of two peaks of one channel are this close, in pixels, only the higher peak is
            decoded; see `heatmaps.decode`.
        stride: Pixels per cell of the heatmaps.

    Returns:
        Keypoints, none of them outside its image; N is the largest of the caps.
    """
    count = max(caps)

    def decode(maps: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        # A crop makes the image's own border the border of its heatmap. It may cut the last cells.
        h, w = heatmaps.heatmap_size((height, width), stride)
        xy, scores = heatmaps.decode(maps[..., :h, :w], count, min_distance=min_distance, stride=stride)
        return torch.stack([xy[..., 0].clamp(max=width), xy[..., 1].clamp(max=height)], dim=-1), scores

    unique = sizes.cpu().unique(dim=0).tolist()
    if len(unique) == 1:  # usually
        xy, scores = decode(probabilities, *unique[0])
    else:
        xy = probabilities.new_empty(*probabilities.shape[:2], count, 2)
        scores = probabilities.new_empty(*probabilities.shape[:2], count)
        for height, width in unique:
            chosen = ((sizes[:, 0] == height) & (sizes[:, 1] == width)).nonzero().flatten()
            chosen = to_device(chosen, xy.device)
            xy[chosen], scores[chosen] = decode(probabilities[chosen], height, width)
    if min(caps) == count:
        return Detections(xy, scores)
    beyond = to_device(torch.arange(count) >= torch.tensor(caps)[:, None], xy.device)
    return Detections(xy.masked_fill(beyond[..., None], math.nan), scores.masked_fill(beyond, 0.0))
