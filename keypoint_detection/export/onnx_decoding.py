"""The last nodes of an exported ONNX graph: from heatmaps to keypoints.

They compute the same as `heatmaps.decode`.
C channels, G groups of connected cells, M cells that may be peaks, N keypoints, h w heatmap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from keypoint_detection import heatmaps
from keypoint_detection.export.onnx_nodes import Nodes, integers, scalar
from keypoint_detection.export.onnx_preprocessing import ImageSizes
from keypoint_detection.export.onnx_subpixel import refine


class DecodingOptions(NamedTuple):
    """How heatmaps are decoded.

    Attributes:
        caps: Maximum number of keypoints of each of the C channels.
        min_distance: See `heatmaps.decode`, in pixels.
        stride: Pixels per cell.
    """

    caps: list[int]
    min_distance: float
    stride: int


def decode(nodes: Nodes, maps: str, thresholds: str, image: ImageSizes, options: DecodingOptions, output: str) -> None:
    """Appends the nodes from heatmaps to keypoints.

    Args:
        nodes: The graph.
        maps: `(1, C, h, w)` float32 in [0, 1], of the padded image.
        thresholds: `(C,)` float32, the score from which a detection of each channel counts.
        image: The sizes of the image.
        options: How heatmaps are decoded.
        output: Name of the result, `(N, 4)` float32: channel, x, y in pixels of the image, score.
    """
    stride = integers(options.stride)
    size = nodes("Div", nodes("Add", image.new_size, integers(options.stride - 1)), stride)
    maps = nodes("Slice", maps, integers(0, 0), size, integers(2, 3))
    height, width = (nodes("Gather", size, scalar(axis, np.int64)) for axis in (0, 1))
    area = nodes("Mul", height, width)
    radius = heatmaps.window_radius(options.min_distance, options.stride)
    cells, centres = _peaks(nodes, maps, width, area, radius)
    flat = nodes("Reshape", maps, integers(-1))
    keys, scores, centre = _highest(nodes, flat, cells, centres, area, thresholds, options.caps)
    channels, cell = nodes("Div", keys, area), nodes("Mod", keys, area)
    row, column = nodes("Div", cell, width), nodes("Mod", cell, width)
    fitted = refine(nodes, flat, keys, nodes.columns(column, row), (width, height))
    fitted = nodes("Where", nodes("IsNaN", centre), fitted, centre)
    pixels = nodes("Mul", nodes("Add", fitted, scalar(heatmaps.HALF_CELL)), scalar(options.stride))
    size, new_size = (
        nodes.cast(nodes("Gather", side, integers(1, 0)), np.float64) for side in (image.size, image.new_size)
    )  # x first
    inside = nodes("Min", nodes.cast(pixels, np.float64), new_size)  # the border may cut the last cells
    xy = nodes.cast(nodes("Mul", inside, nodes("Div", size, new_size)), np.float32)
    channel_column = nodes("Unsqueeze", nodes.cast(channels, np.float32), integers(1))
    nodes("Concat", channel_column, xy, nodes("Unsqueeze", scores, integers(1)), axis=1)
    nodes.nodes[-1].output[0] = output


def _pool(nodes: Nodes, maps: str, radius: int) -> str:
    """Maximum over the square window around each cell, with -inf outside the map."""
    side = 2 * radius + 1
    if radius == 1:
        return nodes("MaxPool", maps, kernel_shape=[side, side], pads=[radius] * 4)
    rows = nodes("MaxPool", maps, kernel_shape=[1, side], pads=[0, radius, 0, radius])
    return nodes("MaxPool", rows, kernel_shape=[side, 1], pads=[radius, 0, radius, 0])


def _peaks(nodes: Nodes, maps: str, width: str, area: str, radius: int) -> tuple[str, str]:
    """Cells that are peaks, one per plateau, as in `plateaus.merge_ties`.

    Returns:
        `(G,)` int64, flat cells in all maps, and `(G, 2)` float32 column and row of the plateau's centre, NaN along an
        axis in which it is a single cell long.
    """
    high = nodes("GreaterOrEqual", maps, scalar(heatmaps.PEAK_THRESHOLD))
    is_peak = nodes("And", high, nodes("Equal", maps, _pool(nodes, maps, radius)))
    others = _pool(nodes, nodes("Where", is_peak, scalar(-math.inf), maps), 1)
    shoulder = nodes("And", is_peak, nodes("Equal", others, maps))
    members = nodes("Squeeze", nodes("NonZero", nodes("Reshape", is_peak, integers(-1))), integers(0))
    # Cells are numbered only among those that may be peaks, because float32 cannot count beyond 2 ** 24.
    number = nodes("Squeeze", nodes("Shape", members), integers(0))
    number = nodes.cast(nodes("Range", scalar(0, np.int64), number, scalar(1, np.int64)), np.float32)
    shape = nodes("Shape", maps)
    none = nodes("Reshape", nodes("Expand", scalar(-1), shape), integers(-1))
    order = nodes("Reshape", nodes("ScatterElements", none, members, number, axis=0), shape)

    def spread(body: Nodes, states: list[str]) -> list[str]:
        wider = body("Where", is_peak, _pool(body, states[0], 1), scalar(-1))
        change = body("ReduceMax", body("Sub", wider, states[0]), integers(0, 1, 2, 3), keepdims=0)
        return [body("Greater", change, scalar(0)), body("Identity", wider)]

    (labels,) = nodes.repeat([order], [np.float32], spread)
    label = nodes.cast(nodes("Gather", nodes("Reshape", labels, integers(-1)), members), np.int64)
    last, _, group, counts = nodes.several("Unique", 4, label, sorted=1)
    roots = nodes("Gather", members, last)

    def reduce(values: str, how: str, start: float) -> str:
        empty = nodes("Expand", scalar(start, np.float64), nodes("Shape", roots))
        return nodes("ScatterElements", empty, group, values, axis=0, reduction=how)

    on_shoulder = nodes.cast(nodes("Gather", nodes("Reshape", shoulder, integers(-1)), members), np.float64)
    stays = nodes("Less", reduce(on_shoulder, "max", 0), scalar(1, np.float64))
    cell = nodes("Mod", members, area)
    centres = []
    # As float64, because float32 cannot hold the sum of many positions.
    for position in (nodes.cast(nodes(operator, cell, width), np.float64) for operator in ("Mod", "Div")):
        extent = nodes("Sub", reduce(position, "max", -1), reduce(position, "min", 2.0**31))
        mean = nodes("Div", reduce(position, "add", 0), nodes.cast(counts, np.float64))
        mean = nodes.cast(mean, np.float32)
        centre = nodes("Where", nodes("Less", extent, scalar(1, np.float64)), scalar(math.nan), mean)
        centres.append(nodes("Unsqueeze", centre, integers(1)))
    centre = nodes("Compress", nodes("Concat", *centres, axis=1), stays, axis=0)
    roots = nodes("Compress", roots, stays, axis=0)
    if radius > 1:
        stays = _spread_out(nodes, roots, order, shape, radius)
        roots, centre = nodes("Compress", roots, stays, axis=0), nodes("Compress", centre, stays, axis=0)
    return roots, centre


def _spread_out(nodes: Nodes, roots: str, order: str, shape: str, radius: int) -> str:
    """Which of the peaks `(G,)` remain if those within the window of a kept one of the same height are dropped."""
    none = nodes("Expand", scalar(0), shape)
    ones = nodes("Expand", scalar(1), nodes("Shape", roots))
    flat = nodes("ScatterElements", nodes("Reshape", none, integers(-1)), roots, ones, axis=0)

    def drop(body: Nodes, states: list[str]) -> list[str]:
        waiting, kept = states
        places = body("Where", body("Greater", waiting, scalar(0)), order, scalar(-1))
        highest = body("Equal", places, _pool(body, places, radius))
        winners = body("Mul", waiting, body.cast(highest, np.float32))
        left = body("Mul", waiting, body("Sub", scalar(1), _pool(body, winners, radius)))
        going = body("Greater", body("ReduceMax", left, integers(0, 1, 2, 3), keepdims=0), scalar(0))
        return [going, left, body("Add", kept, winners)]

    _, kept = nodes.repeat([nodes("Reshape", flat, shape), none], [np.float32, np.float32], drop)
    return nodes("Greater", nodes("Gather", nodes("Reshape", kept, integers(-1)), roots), scalar(0))


def _highest(
    nodes: Nodes, flat: str, cells: str, centres: str, area: str, thresholds: str, caps: list[int]
) -> tuple[str, str, str]:
    """The highest peaks of each channel, in order: flat cells `(N,)`, scores `(N,)` and centres `(N, 2)`."""
    heights = nodes("Gather", flat, cells)
    low = nodes("Expand", scalar(-1), nodes("Shape", flat))
    sparse = nodes("ScatterElements", low, cells, heights, axis=0)
    total = nodes("Squeeze", nodes("Shape", cells), integers(0))
    numbers = nodes("Range", scalar(0, np.int64), total, scalar(1, np.int64))
    indices = nodes("ScatterElements", nodes.cast(low, np.int64), cells, numbers, axis=0)
    rows = nodes("Reshape", sparse, integers(len(caps), -1))
    count = nodes("Min", nodes("Unsqueeze", area, integers(0)), integers(max(caps)))
    scores, places = nodes.several("TopK", 2, rows, count, axis=1)
    ranks = nodes("Range", scalar(0, np.int64), nodes("Squeeze", count, integers(0)), scalar(1, np.int64))
    within = nodes("Less", ranks, np.array(caps, dtype=np.int64)[:, None])
    counts = nodes("GreaterOrEqual", scores, nodes("Max", nodes("Unsqueeze", thresholds, integers(1)), scalar(0)))
    first = nodes("Mul", area, np.arange(len(caps), dtype=np.int64)[:, None])
    chosen = nodes("Reshape", nodes("And", within, counts), integers(-1))
    keys, found = (
        nodes("Compress", nodes("Reshape", value, integers(-1)), chosen, axis=0)
        for value in (nodes("Add", places, first), scores)
    )
    return keys, found, nodes("Gather", centres, nodes("Gather", indices, keys))
