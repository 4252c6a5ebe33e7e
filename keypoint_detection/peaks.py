"""Finds the cells of heatmaps that are peaks.

Everything here is in cells; `heatmaps.decode` turns it into positions. M or T maps, h w heatmap, N peaks per map.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Cells of all maps that are worked on at once: what stays in the cache of a CPU, and little memory.
_CELLS_AT_ONCE = 2**20
# Share of blocks above the threshold from which on peaks are looked for in all cells.
_SPARSE = 0.15
# A cell that is no peak loses this many times what it lacks to the maximum of its window.
_SUPPRESSION = 1e30


def is_exporting() -> bool:
    """Whether a graph is being recorded, which cannot branch on values and takes any number of maps."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def highest_peaks(maps: Tensor, count: int, radius: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Find the highest cells that no cell in their window exceeds.

    Args:
        maps: `(M, h, w)` heights.
        count: N, at most `h * w`.
        radius: cells on each side of the window.
        threshold: lower ones need not be found.

    Returns:
        Heights `(M, N)` in descending order, lower than the threshold where there are fewer, and flat cells `(M, N)`.
    """
    if is_exporting():
        return highest(_suppress(maps, radius), count)
    groups = maps.split(max(1, _CELLS_AT_ONCE // max(1, maps.shape[-2] * maps.shape[-1])))
    memory = None
    if radius == 1 and min(maps.shape[-2:]) > 1:
        # New memory for every step on every group would cost more than the steps.
        memory = torch.empty_like(groups[0]), torch.empty_like(groups[0])
    scores, cells = [], []
    for group in groups:
        peaks = _sparse_peaks(group, threshold) if memory is not None and maps.device.type == "cpu" else None
        if peaks is not None:
            found = _highest_of(*peaks, group, count)
        else:
            found = highest(_suppress(group, radius, memory).nan_to_num_(-math.inf), count)
        scores.append(found[0])
        cells.append(found[1])
    return torch.cat(scores), torch.cat(cells)


def _sparse_peaks(maps: Tensor, threshold: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the cells that reach the threshold and that none of their neighbours exceeds, on a CPU.

    Most cells of a heatmap are close to 0: what is asked of every cell is the maximum of its block of two rows and two
    columns, and all else only of the blocks that reach the threshold. Of equal cells in a block, one stands for all.

    Args:
        maps: `(M, h, w)` heights.
        threshold: height that a peak has to reach.

    Returns:
        Height and index in all maps of each, `(n,)`; None where so many cells reach the threshold that looking at all
        of them is faster.
    """
    odd = [side % 2 for side in maps.shape[-2:]]
    even = F.pad(maps, (0, odd[1], 0, odd[0]), value=-math.inf) if any(odd) else maps.contiguous()
    height, width = even.shape[-2:]
    # Two columns more, so that the cell before the first one of a row, in memory, is as low as can be.
    row_maxima = maps.new_empty(len(maps), height // 2, width + 2)
    row_maxima[..., width:] = -math.inf
    torch.maximum(even[:, 0::2], even[:, 1::2], out=row_maxima[..., :width])
    blocks = torch.maximum(row_maxima[..., 0::2], row_maxima[..., 1::2]).numpy().ravel()
    found = np.flatnonzero(blocks >= threshold)  # numpy does these in a fraction of torch's time
    if len(found) > _SPARSE * blocks.size:
        return None
    heights = blocks.take(found)
    # Along the rows: which column of its block holds the maximum, and the column beside the block on that side.
    pairs = row_maxima.numpy().ravel()
    found *= 2
    in_right = pairs.take(found) < heights
    found += in_right
    stays = np.flatnonzero(pairs.take(found - 1 + 2 * in_right) <= heights)
    heights = heights.take(stays)
    # Along the columns likewise, where three cells lie beside the block.
    line, column = np.divmod(found.take(stays), width + 2)
    cells = even.numpy().ravel()
    row = 2 * line  # of all maps in turn
    in_lower = cells.take(row * width + column) < heights
    row += in_lower
    of_map = row // height
    beside = (row - of_map * height + 2 * in_lower - 1).clip(0, height - 1) + of_map * height
    stays = np.ones(len(row), dtype=bool)
    for step in (-1, 0, 1):
        stays &= cells.take(beside * width + (column + step).clip(0, width - 1)) <= heights
    indices = (row - of_map * (height - maps.shape[-2])) * maps.shape[-1] + column
    return heights[stays], indices[stays]


def _highest_of(heights: np.ndarray, indices: np.ndarray, maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of peaks of each of the maps, as `highest_peaks` returns them.

    Args:
        heights: `(n,)`.
        indices: `(n,)` index in all maps `(M, h, w)`.
        maps: The maps.
        count: N.
    """
    order = np.argsort(-heights, kind="stable")
    size = maps.shape[-2] * maps.shape[-1]
    order = order[np.argsort(indices[order] // size, kind="stable")]
    heights, indices = heights[order], indices[order]
    of_map = indices // size
    rank = np.arange(len(of_map)) - np.searchsorted(of_map, of_map)
    kept = rank < count
    scores = np.full((len(maps), count), -math.inf, dtype=heights.dtype)
    cells = np.zeros((len(maps), count), dtype=np.int64)
    scores[of_map[kept], rank[kept]], cells[of_map[kept], rank[kept]] = heights[kept], (indices % size)[kept]
    return torch.from_numpy(scores), torch.from_numpy(cells)


def _suppress(maps: Tensor, radius: int, memory: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The heights `(M, h, w)` of cells that none in their window exceeds; something far below 0 elsewhere.

    Args:
        maps: `(M, h, w)` heights.
        radius: cells on each side of the window.
        memory: see `_maximum_of_neighbours`, which is used with it; the result will lie in it. For a radius of 1.
    """
    maximum = window_maximum(maps, radius) if memory is None else _maximum_of_neighbours(maps, memory)
    # A long step away from the maximum of the window: one pass, where a comparison and `where` take several times that.
    return torch.lerp(maps, maximum, -_SUPPRESSION, out=None if memory is None else maximum)


def highest(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest cells of `(M, h, w)`: heights `(M, count)` in descending order and flat cells."""
    width = maps.shape[-1]
    # They lie in the rows with the `count` highest maxima.
    rows = maps.amax(-1).topk(min(count, maps.shape[-2])).indices
    heights, cells = maps[torch.arange(len(maps), device=maps.device)[:, None], rows].flatten(1).topk(count)
    return heights, rows.gather(1, cells // width) * width + cells % width


def window_maximum(maps: Tensor, radius: int) -> Tensor:
    """Maximum over the square window of `2 * radius + 1` cells around each cell, as if -inf lay outside of the map.

    Several times as fast as max pooling on a CPU, because whole rows are compared at once.

    Args:
        maps: `(..., h, w)` floating point, or integers of at least -1.
        radius: cells on each side.

    Returns:
        The same shape.
    """
    outside = -math.inf if maps.is_floating_point() else -1
    result = F.pad(maps, (radius, radius, radius, radius), value=outside)
    for axis in (-2, -1):
        length = 1  # every cell holds the maximum of this many cells that begin with it
        while length < 2 * radius + 1:
            step = min(length, 2 * radius + 1 - length)
            # Without arithmetic on sizes, which programs of torch.export cannot keep in a loop.
            if axis == -1:
                result = torch.maximum(result[..., :-step], result[..., step:])
            else:
                result = torch.maximum(result[..., :-step, :], result[..., step:, :])
            length += step
    return result


def _maximum_of_neighbours(maps: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
    """`window_maximum` with a radius of 1, of maps `(M, h, w)` with at least two rows and columns.

    Args:
        maps: `(M, h, w)`.
        memory: two tensors `(at least M, h, w)` to work in. The result lies in the second one.
    """
    first, second = memory[0][: len(maps)], memory[1][: len(maps)]
    for axis in (-2, -1):
        size = maps.shape[axis]
        pairs = first.narrow(axis, 0, size - 1)
        torch.maximum(maps.narrow(axis, 0, size - 1), maps.narrow(axis, 1, size - 1), out=pairs)
        inner = second.narrow(axis, 1, size - 2)
        torch.maximum(pairs.narrow(axis, 0, size - 2), pairs.narrow(axis, 1, size - 2), out=inner)
        second.select(axis, 0).copy_(pairs.select(axis, 0))
        second.select(axis, size - 1).copy_(pairs.select(axis, size - 2))
        maps = second
    return second


def tied_maps(maps: Tensor, scores: Tensor, cells: Tensor, threshold: float) -> Tensor:
    """Find the maps in which a peak has an equal neighbour or another peak of the same height.

    Args:
        maps: `(T, h, w)` heights.
        scores: `(T, N)` heights of peaks in descending order.
        cells: `(T, N)` their flat cells.
        threshold: lower ones are no peaks.

    Returns:
        Indices of such maps, `(n,)` int64. Waits once for the device.
    """
    height, width = maps.shape[-2:]
    steps = torch.arange(9, device=maps.device)
    steps = steps[steps != 4]
    rows = (cells // width)[..., None] + steps // 3 - 1
    columns = (cells % width)[..., None] + steps % 3 - 1
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    neighbours = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)
    equal = maps.flatten(1).gather(1, neighbours).view_as(inside) == scores[..., None]
    tied = (equal & inside).any(2)
    tied[:, 1:] |= scores[:, 1:] == scores[:, :-1]
    return (tied & (scores >= threshold)).any(1).nonzero()[:, 0]
