"""The size of training images, whole or in crops, and the resolution of their heatmaps."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.geometry import fit_size, fit_sizes, parse_image_size
from keypoint_detection.metrics.distances import SMALLEST_DISTANCE
from keypoint_detection.train.choices import Choices

logger = logging.getLogger(__name__)

# The largest side of an image, in pixels, that trains well in minutes on a CPU and in an hour on a GPU.
LARGEST_SIDE = {"cpu": 288, "gpu": 640}
# Longer side divided by shorter side of the images that this is meant for. Flatter images get a larger longer side, so
# that they keep as many pixels.
USUAL_SHAPE = 4 / 3
# On a CPU, images with a longer side below CHEAP_BELOW shrink to CHEAP_SIDE: the extra pixels are worth less than the
# additional images that training gets through without them (benchmarks/README.md).
CHEAP_BELOW, CHEAP_SIDE = 330, 256
# The median object should extend across this many times LARGEST_SIDE. If it extends across less, images may be up to
# LARGEST_FACTOR times as large, and the network trains on crops of about LARGEST_SIDE, which take no longer than small
# images.
ACROSS = 1.2
LARGEST_FACTOR = {"cpu": 3, "gpu": 2}
# The side of crops is at least LARGEST_SIDE, and at least the extent of the objects in most images divided by
# ACROSS_CROP. Crops only pay off if their side is less than LARGEST_CROP of the image's longer side, and if the median
# object extends across less than LARGEST_ACROSS of it.
ACROSS_CROP = 1.6
LARGEST_CROP = 0.75
LARGEST_ACROSS = ACROSS * LARGEST_CROP
# If the median image has this many keypoints of one channel, and their number varies by this factor from the tenth to
# the ninetieth percentile, each belongs to an object of its own. A single object with that many keypoints would show
# about the same number in every image.
FEWEST_OF_MANY = 10
NUMBERS_VARY = 4 / 3
# Backbones need no padding for sides that are multiples of this.
SIDE_MULTIPLE = 32
# Smaller images keep their sizes, unless there are large ones among them.
SMALLEST_FITTED = 4 * SIDE_MULTIPLE
# Two Gaussians with this many cells between them still have two peaks.
CELLS_PER_GAP = 2.5
# About how many images of a large set are measured.
MOST_IMAGES = 2000
# Distances between keypoints that are computed at once, which limits the memory for crowded images.
DISTANCES_AT_ONCE = 2**20


def choose_size(
    choices: Choices, image_size: str | int | list[int] | None, sizes: np.ndarray, across: np.ndarray, accelerator: str
) -> tuple[list[int] | None, int, int]:
    """Choose the size that images are letterboxed into.

    Args:
        choices: The choice is added to these.
        image_size: The given size.
        sizes: `(N, 2)` int width and height of the image files; 0 if they are not known.
        across: What `extents` returns; empty if training will not use crops, without which images stay smaller.
        accelerator: `cpu` or `gpu`.

    Returns:
        Height and width, or None for images at their own sizes, and the median longer and shorter side of the
        network's input that results.
    """
    known = sizes[sizes.min(axis=1) > 0]
    sides = known.max(axis=1) if len(known) else np.array([LARGEST_SIDE["cpu"]])
    side = int(np.median(sides))
    own = side // SIDE_MULTIPLE * SIDE_MULTIPLE
    share = _quantile(across, 0.5)
    larger = _multiple(LARGEST_SIDE[accelerator] * min(ACROSS / share, LARGEST_FACTOR[accelerator]))
    is_cheap = accelerator == "cpu" and side < CHEAP_BELOW
    limit = _multiple((CHEAP_SIDE if is_cheap else LARGEST_SIDE[accelerator]) * flatness(known))
    in_parts = not is_cheap and larger > limit and crop_side(min(larger, own), across, accelerator) is not None
    if in_parts:
        limit = larger
    fitted = max(min(limit, own), SMALLEST_FITTED)
    small = own < SMALLEST_FITTED
    keep = (small and sides.max() <= limit) or (known == fitted).all()
    reason = f"the {'longer' if (sides == side).all() else 'median longer'} side of the images is {side} px"
    if small and not keep:
        reason += f", the largest {sides.max()} px"
    elif in_parts:
        reason += f", and an object extends across about {share:.0%} of it"
    elif side > limit:
        reason += f", and at {limit} px, training sees more images in the same time on the {accelerator}"
    chosen = choices.choose("image_size", image_size, None if keep else fitted, reason)
    size = parse_image_size(None if chosen == "none" else chosen)
    fits = fit_sizes(known, size) if len(known) else np.array([[side, side]])
    longer, shorter = (int(np.median(each)) for each in (fits.max(axis=1), fits.min(axis=1)))
    return (list(size) if size else None), longer, shorter


def flatness(sizes: np.ndarray) -> float:
    """Factor for the longer side of flat images that gives them, on average, as many pixels as the usual shape.

    Args:
        sizes: `(n, 2)` int sides of images in pixels.

    Returns:
        The factor, at least 1. It is 1 for images that are no flatter than usual.
    """
    if not len(sizes):
        return 1.0
    return max(1.0, 1 / math.sqrt(USUAL_SHAPE * float((sizes.min(axis=1) / sizes.max(axis=1)).mean())))


def _multiple(side: float) -> int:
    return round(side / SIDE_MULTIPLE) * SIDE_MULTIPLE


def crop_side(longer: int, across: np.ndarray, accelerator: str) -> int | None:
    """The side of crops for images with a longer side of this many pixels, or None if crops would not pay off.

    They do not if objects fill most of their images, or if a crop would be most of an image.
    """
    side = max(LARGEST_SIDE[accelerator], _quantile(across, 0.9) * longer / ACROSS_CROP)
    if _quantile(across, 0.5) >= LARGEST_ACROSS or side >= LARGEST_CROP * longer:
        return None
    return math.ceil(side / SIDE_MULTIPLE) * SIDE_MULTIPLE


def _quantile(across: np.ndarray, share: float) -> float:
    """The extent that objects do not exceed in this share of the images; infinity if none is known."""
    return float(np.quantile(across, share)) if len(across) else math.inf


def choose_crop(
    choices: Choices,
    crop_size: str | int | list[int] | None,
    longer: int,
    shorter: int,
    across: np.ndarray,
    accelerator: str,
) -> tuple[list[int] | None, int, int]:
    """Choose the size of the crops in which training images are shown.

    Args:
        choices: As for `choose_size`.
        crop_size: The given size.
        longer: The median longer side of images as they enter the network.
        shorter: Their median shorter side.
        across: What `extents` returns.
        accelerator: `cpu` or `gpu`.

    Returns:
        Height and width, or None for whole images, and the longer and shorter side of the training input that results.
    """
    crop = crop_side(longer, across, accelerator)
    most = _quantile(across, 0.9) * longer
    reason = f"faster than whole images of {longer} px, in which most objects extend across at most {most:.0f} px"
    chosen = choices.choose("train_crop_size", crop_size, crop, reason) if crop or crop_size != "auto" else None
    size = parse_image_size(None if chosen == "none" else chosen, "train_crop_size")
    if size is None:
        return None, longer, shorter
    return list(size), min(longer, max(size)), min(shorter, min(size))


def choose_stride(side: int, gap: float) -> int:
    """The coarsest stride at which a side has at least 32 cells and neighbouring keypoints have separate peaks."""
    return next((stride for stride in (4, 2) if side >= 32 * stride and gap >= CELLS_PER_GAP * stride), 1)


def extents(annotations: Annotations, sizes: np.ndarray) -> np.ndarray:
    """How far an object extends in each image, judging by the labels.

    If an image holds many objects, they are assumed to fill the box around all keypoints, with an equal share of its
    area each.

    Args:
        annotations: The images.
        sizes: `(N, 2)` int width and height of their files; images with 0 are skipped.

    Returns:
        `(n,)` the diagonal of the box around an object's keypoints, as a fraction of the image's longer side, for
        images with keypoints in at least two places; for a sample of these if the set is large.
    """
    known = np.flatnonzero(sizes.min(axis=1) > 0)
    objects = _numbers_of_objects(annotations)
    found = []
    for index in known[:: max(1, len(known) // MOST_IMAGES)].tolist():
        width, height = sizes[index].tolist()
        points = np.concatenate(annotations.keypoints(index, width=width, height=height))
        diagonal = float(np.hypot(*np.ptp(points, axis=0))) if len(points) else 0.0
        if diagonal > 0:
            found.append(diagonal / max(width, height) / math.sqrt(objects[index]))
    return np.array(found)


def _numbers_of_objects(annotations: Annotations) -> np.ndarray:
    """`(N,)` how many objects each image holds, judging by the labels: one, or one per keypoint of a channel."""
    most = annotations.counts().max(axis=1)
    if most.any():
        low, median, high = np.quantile(most[most > 0], (0.1, 0.5, 0.9))
        if median >= FEWEST_OF_MANY and high >= NUMBERS_VARY * low:
            return most
    return np.ones(len(most), dtype=int)


def keypoint_gap(annotations: Annotations, sizes: np.ndarray, image_size: tuple[int, int] | None) -> float:
    """How close the closest keypoints of one channel are to one another.

    Args:
        annotations: The images.
        sizes: `(N, 2)` int width and height of their files; images with 0 are skipped.
        image_size: Height and width that the images are letterboxed into, or None.

    Returns:
        The tenth percentile, over keypoints, of the distance to the nearest one of the same channel, in pixels of the
        network's input; infinity if no channel has two keypoints in an image.
    """
    known = np.flatnonzero(sizes.min(axis=1) > 0)
    distances = []
    for index in known[:: max(1, len(known) // MOST_IMAGES)].tolist():
        width, height = sizes[index].tolist()
        scale = fit_size((height, width), image_size)[0] / height
        for points in annotations.keypoints(index, width=width, height=height):
            if len(points) < 2:
                continue
            rows = max(1, DISTANCES_AT_ONCE // len(points))
            for first in range(0, len(points), rows):
                apart = np.hypot(*np.moveaxis(points[first : first + rows, None] - points[None], -1, 0)) * scale
                np.fill_diagonal(apart[:, first:], np.inf)
                distances.append(apart.min(axis=1))
    return float(np.percentile(np.concatenate(distances), 10)) if distances else math.inf


def warn_of_fine_distances(
    distances: Sequence[float], unit: str, sizes: np.ndarray, image_size: Sequence[int] | None
) -> None:
    """Warns if no average precision distance is as large as a pixel of the network's input.

    Args:
        distances: The threshold distances.
        unit: Their unit: `pixel` of the image file, or `image` for fractions of its diagonal.
        sizes: `(N, 2)` int width and height of the image files; images with 0 are skipped.
        image_size: Height and width that the images are letterboxed into, or None.
    """
    known = sizes[sizes.min(axis=1) > 0]
    if not len(known) or (unit == "pixel" and max(distances) < SMALLEST_DISTANCE):  # `warn_of_tiny` warns of these
        return
    fitted = fit_sizes(known, parse_image_size(image_size))
    units = np.hypot(*fitted.T) if unit == "image" else fitted.max(axis=1) / known.max(axis=1)
    largest = max(distances) * float(np.median(units))
    if largest < 1:
        logger.warning(
            "--maximal_gt_keypoint_pixel_distances %s: at most %.2g px of the network's input, for which images of %d "
            "px shrink to %d px, and finer than the error of most detections. AP will stay low, and the choice of the "
            "best checkpoint will be left to chance. Try larger distances, or a larger --image_size.",
            " ".join(f"{distance:g}" for distance in distances), largest,
            np.median(known.max(axis=1)), np.median(fitted.max(axis=1)),
        )  # fmt: skip


def warn_of_large_parts(crop_size: Sequence[int] | None, sizes: np.ndarray, image_size: Sequence[int] | None) -> None:
    """Warns if training crops are at least as large as all training images.

    Args:
        crop_size: Height and width of the crops, or None.
        sizes: `(N, 2)` int width and height of the image files; images with 0 are skipped.
        image_size: Height and width that the images are letterboxed into, or None.
    """
    largest = fit_sizes(sizes, parse_image_size(image_size)).max(axis=0)
    if crop_size and largest.all() and (largest <= crop_size[::-1]).all():
        logger.warning(
            "--train_crop_size %d %d has no effect: training images are at most %d px high and %d px wide as the "
            "network sees them", *crop_size, *largest[::-1],
        )  # fmt: skip
