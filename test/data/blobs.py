"""Pictures of one Gaussian, and where its peak is: an independent measure of where a warp takes a point."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional

from keypoint_detection import heatmaps


def blob_image(point, size, sigma):
    """An 8-bit image `(H, W, 3)` of one Gaussian at `point` (x, y), drawn on the full grid."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    blob = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(255 * blob).astype(np.uint8)[..., None], 3, axis=2)


def peak(image):
    """The highest peak of `(3, H, W)` as xy; a symmetric blur first takes away the steps of 8 bits."""
    smooth = functional.gaussian_blur(image[:1].to(torch.float64), [13, 13], [2.0, 2.0])[0]
    return heatmaps.decode(smooth, 1)[0][0].numpy()
