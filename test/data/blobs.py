"""Pictures of one Gaussian, and where its peak is: an independent measure of where a warp takes a point."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional


def blob_image(point, size, sigma):
    """An 8-bit image `(H, W, 3)` of one Gaussian at `point` (x, y), drawn on the full grid."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    blob = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(255 * blob).astype(np.uint8)[..., None], 3, axis=2)


def peak(image):
    """The peak of the one Gaussian in `(3, H, W)` as xy, also where a warp has made it a slanted ellipse.

    A quadratic in x and y is fitted to the logarithms around the highest pixel: a parabola along each axis, by which
    heatmaps are decoded, is exact for round Gaussians only. A symmetric blur first takes away the steps of 8 bits.
    """
    smooth = functional.gaussian_blur(image[:1].to(torch.float64), [13, 13], [2.0, 2.0])[0].numpy()
    row, column = np.unravel_index(smooth.argmax(), smooth.shape)
    y, x = np.mgrid[-2:3, -2:3]
    window = np.log(smooth[row - 2 : row + 3, column - 2 : column + 3]).ravel()
    x, y = x.ravel(), y.ravel()
    terms = np.stack([np.ones_like(x), x, y, x * x / 2, x * y, y * y / 2], axis=1)
    _, slope_x, slope_y, xx, xy, yy = np.linalg.lstsq(terms, window, rcond=None)[0]
    offset = np.linalg.solve([[xx, xy], [xy, yy]], [-slope_x, -slope_y])
    return np.array([column + 0.5, row + 0.5]) + offset
