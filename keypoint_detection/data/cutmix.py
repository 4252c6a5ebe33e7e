"""Parts of one training image in another, with their keypoints.

C channels, K keypoints, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from keypoint_detection.batch import Batch

# Share of the image that the rectangle covers, and the largest ratio of its sides, as shares of the image's, squared.
_AREA = (0.15, 0.5)
_LARGEST_RATIO = math.e**0.5


def cutmix(samples: Sequence[Batch], probability: float, randoms: Sequence[np.random.Generator]) -> list[Batch]:
    """Replaces a random rectangle of some images by the same part of the next image of the batch.

    After Yun et al. 2019, CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features. Here
    the rectangle brings its keypoints with it and hides those that it covers, so that the labels stay exact; the
    network sees parts of an object without the rest of it, and in combinations that no image shows.

    Args:
        samples: Training samples, changed by all other augmentation: batches without their first dimension.
        probability: Of each sample, in [0, 1].
        randoms: Where the randomness of each sample comes from.

    Returns:
        The samples, of which the mixed ones are new. A channel that is not labelled in one of two images is not
        labelled in what they are mixed to, and a sample without any label is left as it is.
    """
    result = list(samples)
    if len(samples) < 2:
        return result
    others = [*samples[1:], samples[0]]
    for position, (sample, other, random) in enumerate(zip(samples, others, randoms, strict=True)):
        if random.uniform() < probability and sample.labelled.any() and other.labelled.any():
            result[position] = _paste(sample, other, random)
    return result


def _paste(sample: Batch, other: Batch, random: np.random.Generator) -> Batch:
    """The sample with a random rectangle of the other one, within both images."""
    size = np.minimum(sample.images.shape[1:], other.images.shape[1:])
    ratio = _LARGEST_RATIO ** random.uniform(-1, 1)
    shares = np.sqrt(random.uniform(*_AREA) * np.array([ratio, 1 / ratio]))
    sides = np.clip(shares * size, 1, size).astype(int)
    top, left = random.integers(0, size - sides + 1).tolist()
    bottom, right = top + int(sides[0]), left + int(sides[1])
    images = sample.images.clone()
    images[:, top:bottom, left:right] = other.images[:, top:bottom, left:right]
    inside = [
        ((points >= points.new_tensor([left, top])) & (points < points.new_tensor([right, bottom]))).all(dim=-1)
        for points in (sample.keypoints, other.keypoints)
    ]
    kept = sample.keypoints.masked_fill(inside[0][..., None], math.nan)
    brought = other.keypoints.masked_fill(~inside[1][..., None], math.nan)
    return sample._replace(
        images=images, keypoints=torch.cat([kept, brought], dim=1), labelled=sample.labelled & other.labelled
    )
