"""Parses the threshold distances of the metrics."""

from __future__ import annotations

import logging
import math

from keypoint_detection.errors import InputError

logger = logging.getLogger(__name__)

# In pixels, for evaluations during training and after it.
DEFAULT_DISTANCES = "2 4"
SMALLEST_DISTANCE = 0.2  # pixels: labels themselves are less accurate


def parse_distances(distances: str | float | list[float], unit: str = "pixel") -> list[float]:
    """Parses the value of the flag for threshold distances.

    Args:
        distances: A number, a list of numbers, or a string of numbers separated by spaces.
        unit: `pixel`, or `image` for fractions of the image's diagonal.

    Returns:
        The distances in ascending order.

    Raises:
        InputError: If one is not a positive number, or not below 1 although it is a fraction.
    """
    try:
        parts = str(distances).split() if isinstance(distances, (str, float, int)) else distances
        values = sorted({float(part) for part in parts})
    except (TypeError, ValueError):
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise InputError(f"--maximal_gt_keypoint_pixel_distances {distances!r}: expected positive numbers, as in '2 4'")
    if unit == "image" and values[-1] >= 1:
        raise InputError(
            f"--maximal_gt_keypoint_pixel_distances {distances!r}: expected fractions of the image's diagonal with "
            "--threshold_unit image, as in '0.01 0.02'"
        )
    return values


def warn_of_tiny(distances: list[float], unit: str) -> None:
    """Warns about distances in pixels that were probably meant as fractions.

    Args:
        distances: In ascending order.
        unit: `pixel` or `image`.
    """
    if unit == "pixel" and distances[0] < SMALLEST_DISTANCE:
        logger.warning(
            "--maximal_gt_keypoint_pixel_distances: %g is much less than a pixel; --threshold_unit image takes "
            "fractions of the image's diagonal", distances[0],
        )  # fmt: skip
