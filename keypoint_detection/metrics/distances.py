"""The threshold distances of the metrics, as a user gives them."""

from __future__ import annotations

import math

from keypoint_detection.errors import InputError

# In pixels, of evaluations in training and after it.
DEFAULT_DISTANCES = "2 4"


def parse_distances(distances: str | list[float]) -> list[float]:
    """Reads threshold distances as a flag gives them.

    Args:
        distances: Numbers, or a text of numbers separated by spaces.

    Returns:
        The distances in ascending order.

    Raises:
        InputError: If one is no positive number.
    """
    try:
        parts = distances.split() if isinstance(distances, str) else distances
        values = sorted({float(part) for part in parts})
    except (TypeError, ValueError):
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise InputError(f"--maximal_gt_keypoint_pixel_distances {distances!r}: expected positive numbers, as in '2 4'")
    return values
