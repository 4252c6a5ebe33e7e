"""Nodes of an exported ONNX graph that find sub-pixel positions of peaks.

They compute the same as `heatmaps.refine`.
N keypoints, h w heatmap.
"""

from __future__ import annotations

import numpy as np

from keypoint_detection import heatmaps
from keypoint_detection.export.onnx_nodes import Nodes, integers, scalar
from keypoint_detection.subpixel import LARGEST_TWIST, OUTER_WEIGHT, SMALLEST_HEIGHT

_TINY = float(np.finfo(np.float32).tiny)
_WEIGHTS = np.array([OUTER_WEIGHT, 1 - 2 * OUTER_WEIGHT, OUTER_WEIGHT], dtype=np.float32)
# Slope and bend of a parabola through three cells.
_DERIVATIVES = np.array([[-1 / 2, -1], [0, 2], [1 / 2, -1]], dtype=np.float32)
_TWIST = np.array([[1 / 4, 0, -1 / 4], [0, 0, 0], [-1 / 4, 0, 1 / 4]], dtype=np.float32)


def refine(nodes: Nodes, flat: str, keys: str, peaks: str, size: tuple[str, str]) -> str:
    """Appends the fit of quadratic surfaces to the logarithms of 3x3 cells.

    Args:
        nodes: The graph.
        flat: Heights of all cells of all maps.
        keys: `(N,)` flat cells of the peaks.
        peaks: `(N, 2)` int64 column and row of each.
        size: w and h, int64.

    Returns:
        `(N, 2)` float32 column and row, within half a cell of the peak.
    """
    lengths = nodes("Concat", *(nodes("Unsqueeze", length, integers(0)) for length in size), axis=0)
    last = nodes("Max", nodes("Sub", lengths, integers(2)), integers(1))
    middles = nodes("Min", nodes("Max", peaks, integers(1)), last)
    has_three = nodes("Greater", lengths, integers(2))
    heights = _heights(nodes, flat, keys, peaks, middles, lengths)
    lowest = nodes("ReduceMin", heights, integers(1, 2), keepdims=0)
    is_high = nodes("Unsqueeze", nodes("GreaterOrEqual", lowest, scalar(SMALLEST_HEIGHT)), integers(1))
    is_inside = nodes("And", nodes("And", nodes("Equal", peaks, middles), has_three), is_high)
    logarithms = nodes("Log", nodes("Max", heights, scalar(_TINY)))
    # The weights (N, 2, 3) of three columns and three rows: only the peak's own if it is not in the middle.
    place = nodes("Unsqueeze", nodes("Sub", peaks, nodes("Sub", middles, integers(1))), integers(2))
    own = nodes.cast(nodes("Equal", place, integers(0, 1, 2)), np.float32)
    weights = nodes("Where", nodes("Unsqueeze", is_inside, integers(2)), _WEIGHTS, own)
    of_columns, of_rows = (nodes("Gather", weights, scalar(axis, np.int64), axis=1) for axis in (0, 1))
    along_row = nodes("MatMul", nodes("Unsqueeze", of_rows, integers(1)), logarithms)
    along_column = nodes("MatMul", logarithms, nodes("Unsqueeze", of_columns, integers(2)))
    along_column = nodes("Transpose", along_column, perm=[0, 2, 1])
    derivatives = nodes("MatMul", nodes("Concat", along_row, along_column, axis=1), _DERIVATIVES)
    slope, bend = (nodes("Gather", derivatives, scalar(index, np.int64), axis=2) for index in (0, 1))
    is_bent = nodes("And", nodes("Greater", bend, scalar(0)), has_three)
    bend = nodes("Where", is_bent, bend, scalar(1))
    product = nodes("Mul", *(nodes("Gather", bend, integers(axis), axis=1) for axis in (0, 1)))
    is_surface = nodes("ReduceMin", nodes.cast(nodes("And", is_bent, is_inside), np.float32), integers(1))
    limit = nodes("Mul", nodes("Mul", nodes("Sqrt", product), is_surface), scalar(LARGEST_TWIST))
    twist = nodes("ReduceSum", nodes("Mul", logarithms, _TWIST), integers(1, 2), keepdims=0)
    twist = nodes("Max", nodes("Min", nodes("Unsqueeze", twist, integers(1)), limit), nodes("Neg", limit))
    across_slope, across_bend = (nodes("Gather", value, integers(1, 0), axis=1) for value in (slope, bend))
    shift = nodes("Add", nodes("Mul", across_bend, slope), nodes("Mul", twist, across_slope))
    shift = nodes("Div", shift, nodes("Sub", product, nodes("Mul", twist, twist)))
    peak = nodes.cast(peaks, np.float32)
    vertex = nodes("Where", is_bent, nodes("Add", nodes.cast(middles, np.float32), shift), peak)
    half = scalar(heatmaps.HALF_CELL)
    return nodes("Min", nodes("Max", vertex, nodes("Sub", peak, half)), nodes("Add", peak, half))


def _heights(nodes: Nodes, flat: str, keys: str, peaks: str, middles: str, lengths: str) -> str:
    """Heights `(N, 3, 3)` of the cells around `middles`; arbitrary outside maps with fewer than three cells."""
    steps = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).astype(np.int64)  # column and row, of (row, column)
    middle, peak = (nodes("Unsqueeze", value, integers(1, 2)) for value in (middles, peaks))
    places = nodes("Min", nodes("Add", middle, steps), nodes("Sub", lengths, integers(1)))
    shift = nodes("Sub", places, peak)
    columns, rows = (nodes("Gather", shift, scalar(axis, np.int64), axis=3) for axis in (0, 1))
    width = nodes("Gather", lengths, scalar(0, np.int64))
    moved = nodes("Add", nodes("Add", columns, nodes("Mul", rows, width)), nodes("Unsqueeze", keys, integers(1, 2)))
    return nodes("Gather", flat, moved)
