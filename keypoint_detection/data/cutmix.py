"""Pastes a part of one training image into another, with its keypoints.

C channels, K keypoints, H W image.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from keypoint_detection.batch import Batch

# Share of the area that the rectangle covers.
_AREA = (0.15, 0.5)
# Largest ratio between the rectangle's sides, in either direction, each as a share of the image's side.
_LARGEST_RATIO = math.e**0.5


def cutmix(sample: Batch, other: Batch, random: np.random.Generator) -> Batch:
    """Replaces a random rectangle of an image with the same part of another one.

    After Yun et al. 2019, CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features. Here
    the rectangle brings its keypoints with it and hides those that it covers, so that the labels stay exact. The
    network sees parts of objects without the rest, and in combinations that no image shows.

    Args:
        sample: A training sample, after all other augmentation: a batch without the batch dimension, with images
            `(3, H, W)` and keypoints `(C, K, 2)`.
        other: Another one, of any size. The rectangle lies in the upper left area that both images have, and covers
            15 to 50 % of it.
        random: The source of randomness.

    Returns:
        The mixed sample, with the keypoints of both, NaN for those that are hidden; a channel may then have more
        keypoints than in any single image. `transforms` and `indices` are those of `sample`. If `other` is not labelled
        for one of the labelled channels of `sample`, or there are none, `sample` itself: labels could be missing.
    """
    if not sample.labelled.any() or (sample.labelled & ~other.labelled).any():
        return sample
    size = np.minimum(sample.images.shape[1:], other.images.shape[1:])
    ratio = _LARGEST_RATIO ** random.uniform(-1, 1)
    shares = np.sqrt(random.uniform(*_AREA) * np.array([ratio, 1 / ratio]))
    sides = np.clip(shares * size, 1, size).astype(int)
    top, left = random.integers(0, size - sides + 1).tolist()
    bottom, right = top + int(sides[0]), left + int(sides[1])
    images = sample.images.clone()
    images[:, top:bottom, left:right] = other.images[:, top:bottom, left:right]
    rectangle = (left, top, right, bottom)
    kept = sample.keypoints.masked_fill(_seen_in(rectangle, sample), math.nan)
    brought = other.keypoints.masked_fill(~_seen_in(rectangle, other), math.nan)
    return sample._replace(images=images, keypoints=torch.cat([kept, brought], dim=1))


def _seen_in(rectangle: tuple[int, int, int, int], sample: Batch) -> Tensor:
    """Which keypoints lie on pixels of a rectangle (left, top, right, bottom), `(C, K, 1)` bool.

    A keypoint on the right or lower border of the image belongs to the last pixel.
    """
    left, top, right, bottom = rectangle
    height, width = sample.images.shape[1:]
    pixels = sample.keypoints.floor().minimum(sample.keypoints.new_tensor([width - 1, height - 1]))
    inside = (pixels >= pixels.new_tensor([left, top])) & (pixels < pixels.new_tensor([right, bottom]))
    return inside.all(dim=-1, keepdim=True)
