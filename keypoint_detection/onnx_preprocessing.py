"""The first nodes of an exported ONNX graph: from the bytes of an image to the input of the network.

They compute what `data.geometry.letterbox` computes. H W image, h w new size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keypoint_detection import heatmaps
from keypoint_detection.onnx_nodes import Nodes, integers, scalar

# Bits of the weights with which torch resizes bytes: they are rounded so that the largest one fits into 16 bits.
_WEIGHT_LIMIT = 2.0**15
_MOST_BITS = 22
_CENTRE = float(heatmaps.cell_centres(1, 1))  # where the first pixel has its centre


class ImageSizes(NamedTuple):
    """Sizes that the last nodes need, too.

    Attributes:
        size: `(2,)` int64, height and width of the image.
        new_size: `(2,)` int64, height and width at which the network sees it.
    """

    size: str
    new_size: str


def preprocess(
    nodes: Nodes, image: str, image_size: list[int] | None, fill: np.ndarray, divisor: int, output: str
) -> ImageSizes:
    """Appends the way from an image to the input of the network.

    Args:
        nodes: The graph.
        image: `(1, H, W, 3)` uint8 RGB.
        image_size: Height and width to fit into, None to keep the size.
        fill: `(1, 3, 1, 1)` or `(1, 1, 1, 1)` colour in [0, 255] of the padding, which is subtracted.
        divisor: The padded height and width are multiples of this.
        output: Name of the result, `(1, 3, h, w)` float32.

    Returns:
        The sizes.
    """
    size = nodes("Slice", nodes("Shape", image), integers(1), integers(3))
    planes = nodes.cast(nodes("Transpose", image, perm=[0, 3, 1, 2]), np.float32)
    new_size = size
    if image_size is not None:
        new_size = _fit_size(nodes, size, image_size)
        planes = _resize(nodes, planes, size, new_size)
    centred = nodes("Sub", planes, fill.astype(np.float32))
    # -size mod divisor, which is what is missing to a multiple of it
    missing = nodes("Mod", nodes("Neg", new_size), integers(divisor))
    pads = nodes("Concat", integers(0, 0, 0, 0, 0, 0), missing, axis=0)
    nodes("Identity", nodes("Pad", centred, pads, scalar(0)))
    nodes.nodes[-1].output[0] = output
    return ImageSizes(size, new_size)


def _fit_size(nodes: Nodes, size: str, image_size: list[int]) -> str:
    """`data.geometry.fit_size`: the largest `(2,)` of the same aspect that fits."""
    real = nodes.cast(size, np.float64)
    factor = nodes("ReduceMin", nodes("Div", np.array(image_size, dtype=np.float64), real), integers(0))
    rounded = nodes.cast(nodes("Round", nodes("Mul", real, factor)), np.int64)
    return nodes("Max", rounded, integers(1))


def _resize(nodes: Nodes, planes: str, size: str, new_size: str) -> str:
    """Antialiased bilinear resizing of bytes as torch does it: `(1, 3, H, W)` -> `(1, 3, h, w)` whole numbers.

    The resizing of ONNX weighs the pixels at the borders differently.
    """
    across, bits = _weights(nodes, size, new_size, axis=1)
    planes = _to_bytes(nodes, nodes("MatMul", planes, nodes("Transpose", across, perm=[1, 0])), bits)
    down, bits = _weights(nodes, size, new_size, axis=0)
    return _to_bytes(nodes, nodes("MatMul", down, planes), bits)


def _weights(nodes: Nodes, size: str, new_size: str, axis: int) -> tuple[str, str]:
    """Weights `(new, old)` of the pixels along an axis, whole numbers that add up to nearly `unit`; and that unit."""
    old, new = (nodes("Gather", value, scalar(axis, np.int64)) for value in (size, new_size))
    scale = nodes("Div", nodes.cast(old, np.float64), nodes.cast(new, np.float64))
    first = scalar(_CENTRE, np.float64)

    def centres(count: str) -> str:
        steps = nodes("Range", scalar(0, np.int64), count, scalar(1, np.int64))
        return nodes("Add", nodes.cast(steps, np.float64), first)

    targets = nodes("Unsqueeze", nodes("Mul", centres(new), scale), integers(1))
    distances = nodes("Abs", nodes("Sub", centres(old), targets))
    distances = nodes("Div", distances, nodes("Max", scale, scalar(1, np.float64)))
    heights = nodes("Max", nodes("Sub", scalar(1, np.float64), distances), scalar(0, np.float64))
    weights = nodes("Div", heights, nodes("ReduceSum", heights, integers(1)))
    # The largest number of bits, at most 22, with which the largest weight rounds to less than the limit.
    units = 2.0 ** np.arange(_MOST_BITS + 1)
    largest = nodes("ReduceMax", weights, integers(0, 1), keepdims=0)
    rounded = nodes("Round", nodes("Mul", units, largest))
    fits = nodes("Less", rounded, scalar(_WEIGHT_LIMIT, np.float64))
    unit = nodes("ReduceMax", nodes("Where", fits, units, scalar(1, np.float64)), integers(0), keepdims=0)
    whole = nodes("Floor", nodes("Add", nodes("Mul", weights, unit), first))
    return nodes.cast(whole, np.float32), nodes.cast(unit, np.float32)


def _to_bytes(nodes: Nodes, sums: str, unit: str) -> str:
    """Weighted sums as whole numbers in [0, 255]."""
    rounded = nodes("Floor", nodes("Add", nodes("Div", sums, unit), scalar(_CENTRE)))
    return nodes("Clip", rounded, scalar(0), scalar(255))
