"""Splits a large image into overlapping tiles, and merges the keypoints of its tiles.

C channels, N keypoints, H W image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Neighbouring tiles share this fraction of their side, so that each keypoint is seen with its surroundings.
OVERLAP = 0.25
# In pixels of the network's input. A keypoint near a seam may be found on one side of it in one tile and on the other
# side in the next.
SEAM_PIXELS = 3.0


class Tile(NamedTuple):
    """A rectangle of an image.

    Attributes:
        rows: Its rows.
        columns: Its columns.
        core: `(x0, y0, x1, y1)` in pixels of the image: the part that is closer to this tile's centre than to that of
            any neighbour.
    """

    rows: slice
    columns: slice
    core: tuple[float, float, float, float]


def split_into_tiles(size: tuple[int, int], side: int) -> list[Tile]:
    """Splits an image into overlapping tiles.

    Args:
        size: `(H, W)` of the image in pixels.
        side: Side of a tile in pixels.

    Returns:
        The tiles, row by row; their cores cover the image without overlapping.
    """
    rows, columns = _intervals(size[0], side), _intervals(size[1], side)
    return [
        Tile(slice(top, bottom), slice(left, right), (x0, y0, x1, y1))
        for top, bottom, y0, y1 in rows
        for left, right, x0, x1 in columns
    ]


def _intervals(length: int, side: int) -> list[tuple[int, int, float, float]]:
    """Start and end of each interval of `side` pixels, and of its core, along one axis."""
    if length <= side:
        return [(0, length, 0.0, float(length))]
    count = 1 + math.ceil((length - side) / (side * (1 - OVERLAP)))
    starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
    seams = [0.0, *((start + side + following) / 2 for start, following in itertools.pairwise(starts))]
    return [(s, s + side, low, high) for s, low, high in zip(starts, seams, [*seams[1:], float(length)], strict=True)]


def merge_tiles(
    tiles: Sequence[Tile], found: Sequence[tuple[np.ndarray, np.ndarray]], scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Merges the keypoints of the tiles of one image.

    Args:
        tiles: The tiles that `split_into_tiles` returned.
        found: For each tile `(C, N, 2)` xy in pixels of the tile, NaN for none, and `(C, N)` scores.
        scale: Pixels of a tile per pixel of the network's input, at least 1.

    Returns:
        `(C, M, 2)` xy in pixels of the image, NaN for none, and `(C, M)` scores in descending order.
    """
    seam = SEAM_PIXELS * scale
    points = np.concatenate(
        [xy + np.array([tile.columns.start, tile.rows.start]) for tile, (xy, _) in zip(tiles, found, strict=True)],
        axis=1,
    )
    scores = np.concatenate([scores for _, scores in found], axis=1)
    inside = np.concatenate([_in_core(xy, tile, seam) for tile, (xy, _) in zip(tiles, found, strict=True)], axis=1)
    points[~inside], scores[~inside] = np.nan, 0
    owners = np.concatenate([np.full(scores.shape, index) for index, (_, scores) in enumerate(found)], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    points = np.take_along_axis(points, order[..., None], 1)
    scores, owners = np.take_along_axis(scores, order, 1), np.take_along_axis(owners, order, 1)
    for channel in zip(points, scores, owners, strict=True):
        _drop_doubles(*channel, seam)
    order = np.argsort(-scores, axis=1, kind="stable")  # what was removed goes to the end
    return np.take_along_axis(points, order[..., None], 1), np.take_along_axis(scores, order, 1)


def _in_core(xy: np.ndarray, tile: Tile, seam: float) -> np.ndarray:
    """Which `(C, N, 2)` points of a tile are in its core, or near enough to it to be a duplicate."""
    x0, y0, x1, y1 = tile.core
    low = np.array([x0 - tile.columns.start, y0 - tile.rows.start]) - seam / 2
    high = np.array([x1 - tile.columns.start, y1 - tile.rows.start]) + seam / 2
    return ((xy >= low) & (xy <= high)).all(-1)


def _drop_doubles(points: np.ndarray, scores: np.ndarray, owners: np.ndarray, seam: float) -> None:
    """Removes, in place, each `(N, 2)` point that is near one with a higher score from another tile."""
    for index in np.flatnonzero(scores > 0)[1:]:
        elsewhere = points[:index][owners[:index] != owners[index]]
        if (np.hypot(*(elsewhere - points[index]).T) < seam).any():
            points[index], scores[index] = np.nan, 0
