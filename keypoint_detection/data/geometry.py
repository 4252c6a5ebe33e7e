"""How images are resized and warped for the network: sizes, homographies and a single resampling.

All points are `(x, y)` in continuous pixels. A homography is a `(3, 3)` float64 array that maps column vectors
`(x, y, 1)`; `a @ b` applies `b` first. H W image, h w source.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from keypoint_detection import heatmaps
from keypoint_detection.errors import InputError

FILLS = ("mean", "zeros", "border", "reflection")

# A warp that shrinks more than this first shrinks the image with an antialiasing filter to this many source pixels
# per output pixel; the bilinear sampling that follows then neither skips source pixels nor blurs noticeably.
_OVERSAMPLING = 1.25
# `shrink_size` makes no side smaller than this, in pixels: small images have no detail to spare.
SMALLEST_SIDE = 128


def parse_image_size(image_size: int | str | Sequence[int] | None, name: str = "image_size") -> tuple[int, int] | None:
    """Reads a size as users give it: `256`, `"256 320"` or `[256, 320]` (height, width), or None.

    Args:
        image_size: the size.
        name: what error messages call it.

    Returns:
        `(height, width)` in pixels, or None for the size of the image file.

    Raises:
        InputError: if it is not one or two positive whole numbers.
    """
    if image_size is None:
        return None
    values = image_size.replace("x", " ").replace(",", " ").split() if isinstance(image_size, str) else image_size
    try:
        parts = values if isinstance(values, Sequence) else [values]
        numbers = [int(part) if isinstance(part, str) else operator.index(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise InputError(f"{name}: expected one or two positive whole numbers (height width), got {image_size!r}")
    return numbers[0], numbers[-1]


def fit_size(size: tuple[int, int], image_size: tuple[int, int] | None) -> tuple[int, int]:
    """The largest size with the aspect ratio of `size` that fits into `image_size`, rounded to whole pixels.

    Args:
        size: `(h, w)` of the image file in pixels.
        image_size: `(height, width)` to fit into; None keeps `size`.
    """
    if image_size is None:
        return size
    factor = min(image_size[0] / size[0], image_size[1] / size[1])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def fit_sizes(sizes: np.ndarray, image_size: tuple[int, int] | None) -> np.ndarray:
    """`fit_size` of many images.

    Args:
        sizes: `(N, 2)` int64 width and height of the image files in pixels; 0 where unknown.
        image_size: `(height, width)` to fit into; None keeps `sizes`.

    Returns:
        `(N, 2)` int64 width and height; 0 where unknown.
    """
    if image_size is None:
        return sizes
    fitted = [fit_size((height, width), image_size)[::-1] if width else (0, 0) for width, height in sizes.tolist()]
    return np.array(fitted, np.int64)


def shrink_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """A smaller size of the same aspect ratio, for the part of training that does not need full resolution.

    Args:
        size: `(h, w)` in pixels.
        scale: factor of the size, in (0, 1]. No side is made smaller than `SMALLEST_SIDE`.
    """
    factor = max(scale, min(1.0, SMALLEST_SIDE / min(size)))
    return round(size[0] * factor), round(size[1] * factor)


def scaling(size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """The homography from pixels of an image of `size` (h, w) to pixels of the same image at `new_size`."""
    return np.diag([new_size[1] / size[1], new_size[0] / size[0], 1.0])


def translation(x: float, y: float) -> np.ndarray:
    """The homography that moves points by `(x, y)` pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def resize(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resizes an image with an antialiasing bilinear filter; at its own size, it stays the same bit for bit.

    Args:
        image: `(h, w, 3)` uint8 RGB.
        size: `(H, W)` in pixels.

    Returns:
        `(3, H, W)` uint8, in any memory layout.
    """
    # Copies only what torch cannot read: mirrored views and read-only arrays.
    source = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    if tuple(image.shape[:2]) == size:
        return source
    # uint8 with channels last is by far torch's fastest path.
    return F.interpolate(source[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def to_float(image: Tensor) -> Tensor:
    """Converts `(3, H, W)` uint8 of any memory layout to contiguous float32 in [0, 1]."""
    return image.contiguous(memory_format=torch.contiguous_format).float().div_(255)


def letterbox(
    image: np.ndarray,
    image_size: tuple[int, int] | None = None,
    scale: float = 1.0,
    file_size: tuple[int, int] | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Resizes an image to fit into `image_size`, keeping its aspect ratio.

    Validation, test and prediction all use this function, so they see the same bits. The result is not padded to
    `image_size`: a batch pads its images to the largest of them, at the right and the bottom.

    Args:
        image: `(h, w, 3)` uint8 RGB.
        image_size: `(height, width)` to fit into; None keeps the size of the file.
        scale: factor of that size, see `shrink_size`.
        file_size: `(height, width)` of the file, if `image` may be a smaller copy of it; None if it is not.

    Returns:
        The image, `(3, H, W)` float32 in [0, 1] with `H <= height` and `W <= width`, and the exact homography,
        `(3, 3)` float64, from its pixels back to pixels of the file (as in `Batch.transforms`).
    """
    size = file_size or (image.shape[0], image.shape[1])
    new_size = shrink_size(fit_size(size, image_size), scale)
    return to_float(resize(image, new_size)), scaling(new_size, size)


def shrink_factor(homography: np.ndarray, size: tuple[int, int]) -> float:
    """Source pixels per output pixel at the centre of the output, along the direction that shrinks least.

    Args:
        homography: `(3, 3)` from source pixels to output pixels.
        size: `(H, W)` of the output in pixels.
    """
    inverse = np.linalg.inv(homography)
    centre = np.array([size[1] / 2, size[0] / 2, 1.0])
    x, y, w = inverse @ centre
    jacobian = (inverse[:2, :2] - np.outer([x / w, y / w], inverse[2, :2])) / w
    return float(np.linalg.svd(jacobian, compute_uv=False).min())


def _sampled(
    homography: np.ndarray, size: tuple[int, int], source_size: tuple[int, int], margin: float
) -> tuple[slice, slice]:
    """Rows and columns of the source that an output of `size` is sampled from, with a margin in source pixels."""
    corners = np.array([[0, size[1], 0, size[1]], [0, 0, size[0], size[0]], [1, 1, 1, 1]])
    x, y, w = np.linalg.inv(homography) @ corners
    if w.min() <= 0:  # the output reaches the horizon
        return slice(0, source_size[0]), slice(0, source_size[1])
    spans = []
    for values, side in ((y / w, source_size[0]), (x / w, source_size[1])):
        first = min(max(0, math.floor(values.min() - margin)), side - 1)
        spans.append(slice(first, max(first + 1, min(side, math.ceil(values.max() + margin)))))
    return spans[0], spans[1]


def warp(image: np.ndarray, homography: np.ndarray, size: tuple[int, int], fill: str = "mean") -> Tensor:
    """Warps an image with a homography, by sampling it once with bilinear interpolation.

    If the homography shrinks the image, an antialiased smaller copy of it is sampled, so that no source pixel is
    skipped.

    Args:
        image: `(h, w, 3)` uint8 RGB.
        homography: `(3, 3)` from pixels of `image` to pixels of the output.
        size: `(H, W)` of the output in pixels.
        fill: what to show outside the image: `mean` (its mean colour, or that of the sampled part if this is less than
            half of it), `zeros` (black), `border` (its nearest pixel) or `reflection` (its mirror image).

    Returns:
        `(3, H, W)` float32 in [0, 1].
    """
    shrink = shrink_factor(homography, size) / _OVERSAMPLING
    if fill != "reflection":  # which may show any part
        rows, columns = _sampled(homography, size, (image.shape[0], image.shape[1]), margin=2 * max(1.0, shrink) + 1)
        if (rows.stop - rows.start) * (columns.stop - columns.start) < image.shape[0] * image.shape[1] / 2:
            image, homography = image[rows, columns], homography @ translation(columns.start, rows.start)
    source_size = (image.shape[0], image.shape[1])
    reduced_size = source_size
    if shrink > 1:
        reduced_size = (math.ceil(source_size[0] / shrink), math.ceil(source_size[1] / shrink))
    source = to_float(resize(image, reduced_size))
    inverse = scaling(source_size, reduced_size) @ np.linalg.inv(homography)
    grid = heatmaps.sampling_grid(torch.from_numpy(inverse), size, reduced_size).to(torch.float32)
    if fill != "mean":
        return F.grid_sample(source[None], grid, mode="bilinear", padding_mode=fill, align_corners=False)[0]
    # numpy computes the mean in one thread, so that it does not depend on the number of threads, and along a single
    # axis, where it sums pairwise, so that 32 bits are exact enough.
    mean = torch.from_numpy(source.flatten(1).numpy().mean(axis=1))[:, None, None]
    source = source.sub_(mean)
    return F.grid_sample(source[None], grid, mode="bilinear", align_corners=False)[0].add_(mean).clamp_(0, 1)
