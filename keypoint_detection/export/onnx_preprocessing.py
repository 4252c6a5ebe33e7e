"""The first nodes of an exported ONNX graph: from the bytes of an image to the input of the network.

They compute the same as `data.geometry.letterbox`. H W image, h w new size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keypoint_detection import heatmaps
from keypoint_detection.export.onnx_nodes import Nodes, integers, scalar

# When torch resizes bytes, its weights are fixed-point numbers with up to 22 bits after the point, as many as still let
# the largest one fit into a signed 16-bit integer.
_WEIGHT_LIMIT = 2.0**15
_MOST_BITS = 22
_BLOCK = 16  # new pixels that are computed together


class ImageSizes(NamedTuple):
    """Sizes that the last nodes of the graph need, too.

    Attributes:
        size: `(2,)` int64, height and width of the image.
        new_size: `(2,)` int64, height and width at which the network sees it.
    """

    size: str
    new_size: str


def preprocess(
    nodes: Nodes, image: str, image_size: list[int] | None, fill: np.ndarray, divisor: int, output: str
) -> ImageSizes:
    """Appends the nodes from an image to the input of the network.

    Args:
        nodes: The graph.
        image: `(1, H, W, 3)` uint8 RGB.
        image_size: Height and width to fit into, None to keep the size.
        fill: `(1, 3, 1, 1)` or `(1, 1, 1, 1)` colour of the padding in [0, 255]. It is subtracted from the image.
        divisor: The padded height and width are multiples of this.
        output: Name of the result, `(1, 3, h, w)` float32.

    Returns:
        The sizes.
    """
    size = nodes("Slice", nodes("Shape", image), integers(1), integers(3))
    if image_size is None:
        new_size, resized = size, nodes("Transpose", image, perm=[0, 3, 1, 2])
    else:
        new_size = _fit_size(nodes, size, image_size)
        resized = _resize(nodes, image, size, new_size)
    centred = nodes("Sub", nodes.cast(resized, np.float32), fill.astype(np.float32))
    # -size mod divisor is what is missing to the next multiple of the divisor.
    missing = nodes("Mod", nodes("Neg", new_size), integers(divisor))
    pads = nodes("Concat", integers(0, 0, 0, 0, 0, 0), missing, axis=0)
    nodes("Identity", nodes("Pad", centred, pads, scalar(0)))
    nodes.nodes[-1].output[0] = output
    return ImageSizes(size, new_size)


def _fit_size(nodes: Nodes, size: str, image_size: list[int]) -> str:
    """`data.geometry.fit_size`: the largest size `(2,)` of the same aspect ratio that fits."""
    real = nodes.cast(size, np.float64)
    factor = nodes("ReduceMin", nodes("Div", np.array(image_size, dtype=np.float64), real), integers(0))
    rounded = nodes.cast(nodes("Round", nodes("Mul", real, factor)), np.int64)
    return nodes("Max", rounded, integers(1))


def _resize(nodes: Nodes, image: str, size: str, new_size: str) -> str:
    """Antialiased bilinear resizing of bytes, like torch's: `(1, H, W, 3)` -> `(1, 3, h, w)` uint8.

    ONNX's own resizing uses other weights for pixels at the borders.
    """
    height, width = (nodes("Gather", size, integers(axis)) for axis in (0, 1))
    new_height, new_width = (nodes("Gather", new_size, integers(axis)) for axis in (0, 1))
    columns = nodes("Transpose", nodes("Squeeze", image, integers(0)), perm=[1, 2, 0])
    columns = _resize_first(nodes, columns, width, new_width)
    rows = _resize_first(nodes, nodes("Transpose", columns, perm=[2, 0, 1]), height, new_height)
    return nodes("Unsqueeze", nodes("Transpose", rows, perm=[2, 0, 1]), integers(0))


def _resize_first(nodes: Nodes, values: str, old: str, new: str) -> str:
    """Resizes the first of three axes of bytes, `(old, ...)` to `(new, ...)`; the lengths are `(1,)` int64.

    A new pixel depends on only a few old ones. So each block of new pixels is the product of a small matrix and the
    window of old pixels that it needs.
    """
    scale = nodes("Div", nodes.cast(old, np.float64), nodes.cast(new, np.float64))
    reach = nodes("Max", scale, scalar(1, np.float64))  # of a new pixel on each side of its centre, in old pixels
    blocks = nodes("Div", nodes("Add", new, integers(_BLOCK - 1)), integers(_BLOCK))
    starts = nodes("Mul", nodes("Unsqueeze", _count(nodes, blocks), integers(1)), integers(_BLOCK))
    # (blocks, _BLOCK); the last block may extend beyond the end
    targets = nodes("Add", starts, np.arange(_BLOCK, dtype=np.int64))
    centres = nodes("Mul", _centres(nodes, targets), scale)
    start = nodes("Sub", nodes("Mul", _centres(nodes, starts), scale), reach)  # (blocks, 1)
    start = nodes.cast(nodes("Floor", start), np.int64)
    span = nodes("Add", nodes("Mul", scale, scalar(_BLOCK - 1, np.float64)), nodes("Add", reach, reach))
    length = nodes("Add", nodes.cast(nodes("Ceil", span), np.int64), integers(1))
    sources = nodes("Add", start, _count(nodes, length))  # (blocks, length), may extend beyond both ends
    exist = nodes("And", nodes("GreaterOrEqual", sources, integers(0)), nodes("Less", sources, old))
    exist = nodes(
        "And", nodes("Unsqueeze", nodes("Less", targets, new), integers(2)), nodes("Unsqueeze", exist, integers(1))
    )
    weights = _weights(nodes, _centres(nodes, sources), centres, reach, exist)
    inside = nodes("Max", nodes("Min", sources, nodes("Sub", old, integers(1))), integers(0))
    windows = nodes("Gather", values, inside)  # (blocks, length, ...)
    windows = nodes.cast(nodes("Reshape", windows, integers(0, 0, -1)), np.float32)
    rounded = nodes.cast(nodes("Add", nodes("MatMul", weights, windows), scalar(0.5)), np.uint8)
    rest = nodes("Slice", nodes("Shape", values), integers(1), integers(3))
    whole = nodes("Reshape", rounded, nodes("Concat", integers(-1), rest, axis=0))
    return nodes("Slice", whole, integers(0), new, integers(0))


def _count(nodes: Nodes, length: str) -> str:
    """The integers from 0 to below `length`, which is `(1,)` int64."""
    return nodes("Range", scalar(0, np.int64), nodes("Squeeze", length), scalar(1, np.int64))


def _centres(nodes: Nodes, pixels: str) -> str:
    """The centres of pixels, float64."""
    return nodes("Add", nodes.cast(pixels, np.float64), scalar(heatmaps.HALF_CELL, np.float64))


def _weights(nodes: Nodes, sources: str, targets: str, reach: str, exist: str) -> str:
    """Weights `(blocks, n, m)` float32 of old pixels in new ones, rounded like torch's.

    Their sum exceeds 1 by so little that no weighted sum of bytes reaches 255.5.

    Args:
        nodes: The graph.
        sources: `(blocks, m)` centres of old pixels.
        targets: `(blocks, n)` centres of new ones, in old pixels.
        reach: `(1,)`, how far from its centre a new pixel depends on old ones, in old pixels.
        exist: `(blocks, n, m)` bool, whether both pixels exist; the weight is 0 if not.
    """
    distances = nodes("Sub", nodes("Unsqueeze", sources, integers(1)), nodes("Unsqueeze", targets, integers(2)))
    heights = nodes("Sub", scalar(1, np.float64), nodes("Div", nodes("Abs", distances), reach))
    heights = nodes("Max", nodes("Where", exist, heights, scalar(0, np.float64)), scalar(0, np.float64))
    sums = nodes("ReduceSum", heights, integers(2))  # 0 for a pixel that does not exist
    weights = nodes(
        "Div", heights, nodes("Where", nodes("Greater", sums, scalar(0, np.float64)), sums, scalar(1, np.float64))
    )
    # 2 to the largest number of bits, at most 22, with which the largest weight rounds to less than the limit.
    units = 2.0 ** np.arange(_MOST_BITS + 1)
    largest = nodes("ReduceMax", weights, integers(0, 1, 2), keepdims=0)
    rounded = nodes("Round", nodes("Mul", units, largest))
    fits = nodes("Less", rounded, scalar(_WEIGHT_LIMIT, np.float64))
    unit = nodes("ReduceMax", nodes("Where", fits, units, scalar(1, np.float64)), integers(0), keepdims=0)
    whole = nodes("Floor", nodes("Add", nodes("Mul", weights, unit), scalar(0.5, np.float64)))
    return nodes.cast(nodes("Div", whole, unit), np.float32)
