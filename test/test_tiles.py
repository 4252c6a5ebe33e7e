"""Tiles of an image and the seams between them, by hand."""

import numpy as np
import pytest

from keypoint_detection.tiles import merge_tiles, split_into_tiles


def test_seams_lie_in_the_middle_of_what_neighbours_share():
    tiles = split_into_tiles((10, 100), 40)  # columns 0-40, 30-70 and 60-100
    assert [tile.core for tile in tiles] == [(0, 0, 35, 10), (35, 0, 65, 10), (65, 0, 100, 10)]


@pytest.mark.parametrize(("left", "right", "kept"), [(36.6, 33.7, 33.7), (36.3, 33.4, 36.3)])
def test_a_tile_sees_half_the_distance_of_doubles_beyond_its_seam(left, right, kept):
    """Columns 0-40 and 30-70, with the seam at 35: one tile's keypoint lies 1.6 pixels beyond it, the other's 1.3."""
    tiles = split_into_tiles((10, 70), 40)
    scores = [0.8 if x == kept else 0.9 for x in (left, right)]
    found = [(np.array([[[x, 5.0]]]), np.array([[score]])) for x, score in zip((left, right - 30), scores, strict=True)]
    xy, scores = merge_tiles(tiles, found)
    assert scores.tolist() == [[0.8, 0.0]]
    assert xy[0, 0].tolist() == pytest.approx([kept, 5])


def test_what_remains_of_doubles_is_in_descending_order_of_scores():
    tiles = split_into_tiles((10, 70), 40)
    found = [
        (np.array([[[35.0, 5.0], [9.0, 5.0]]]), np.array([[0.9, 0.5]])),
        (np.array([[[5.5, 5.0], [29.0, 6.0]]]), np.array([[0.8, 0.7]])),  # of columns 30-70: the first one is a double
    ]
    xy, scores = merge_tiles(tiles, found)
    assert scores.tolist() == [[0.9, 0.7, 0.5, 0.0]]
    assert xy[0, :3].tolist() == [[35, 5], [59, 6], [9, 5]]
    assert np.isnan(xy[0, 3]).all()
