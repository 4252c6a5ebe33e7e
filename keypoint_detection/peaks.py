"""Finds the cells of heatmaps that are peaks.

Everything here is in cells; `heatmaps.decode` turns it into positions. M or T maps, h w heatmap, N peaks per map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Cells of all maps that are processed at once: they fit into the cache of a CPU and take little memory.
_CELLS_AT_ONCE = 2**20
# If more than this share of the pairs of cells is above the threshold, all cells are searched for peaks.
_SPARSE = 0.15
# A cell that is not a peak is lowered by this many times its difference from the maximum of its window.
_SUPPRESSION = 1e30


def is_exporting() -> bool:
    """Whether a graph is being recorded, which cannot branch on values and must take any number of maps."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def highest_peaks(maps: Tensor, count: int, radius: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Find the highest cells that no cell in their window exceeds.

    Args:
        maps: `(M, h, w)` heights.
        count: N, at most `h * w`.
        radius: cells on each side of the window.
        threshold: lower peaks need not be found.

    Returns:
        Heights `(M, N)` in descending order, and flat cells `(M, N)`. If a map has fewer than N peaks that reach the
        threshold, the remaining heights are below it.
    """
    if is_exporting():
        return highest(_suppress(maps, radius), count)
    groups = maps.split(max(1, _CELLS_AT_ONCE // max(1, maps.shape[-2] * maps.shape[-1])))
    if radius == 1 and maps.device.type == "cpu":
        peaks = _sparse_peaks(groups, threshold)
        if peaks is not None:
            return _highest_of(*peaks, maps.shape, count)
    memory = None
    if radius == 1 and min(maps.shape[-2:]) > 1:
        # Allocating memory for every step on every group would cost more than the steps.
        memory = torch.empty_like(groups[0]), torch.empty_like(groups[0])
    found = [highest(_suppress(group, radius, memory).nan_to_num_(-math.inf), count) for group in groups]
    scores, cells = zip(*found, strict=True)
    return torch.cat(scores), torch.cat(cells)


def _sparse_peaks(groups: Sequence[Tensor], threshold: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the cells that reach the threshold and that none of their neighbours exceeds, on a CPU.

    Most cells of a heatmap are close to 0. So only the maximum of each pair (a cell in an even row and the one below)
    is computed everywhere, and everything else only for the pairs that reach the threshold. The pairs to the left and
    right cover four neighbours of a pair's higher cell, the pair's other cell is a fifth, and `_tops_of_pairs` checks
    the other three. Of two equal cells in a pair, the upper one represents both.

    Comparing each cell that reaches the threshold with its eight neighbours in a padded copy would be half as much
    code, but decoding would take a tenth longer.

    Args:
        groups: `(m, h, w)` heights, the first group being the largest.
        threshold: height that a peak must reach.

    Returns:
        The heights of the peaks, `(n,)`, and their indices in the maps of all groups, `(n,)`; None if so many pairs of
        some group reach the threshold that it is faster to search all cells of all groups.
    """
    height, width = groups[0].shape[-2:]
    lines = -(-height // 2)
    # The extra column of -inf is the outer neighbour of the first and the last cell of a row.
    memory = groups[0].new_full((len(groups[0]), lines, width + 1), -math.inf)
    before = 0
    found = []
    for maps in groups:
        pairs = memory[: len(maps)]
        torch.maximum(maps[:, 0 : height - 1 : 2], maps[:, 1::2], out=pairs[:, : height // 2, :width])
        if height % 2:
            pairs[:, -1, :width] = maps[:, -1]
        above = pairs.numpy().ravel()
        columns = np.flatnonzero(above >= threshold)  # numpy does this in a fraction of torch's time
        if len(columns) > _SPARSE * above.size:
            return None
        heights = above.take(columns)
        stays = above.take(columns - 1) <= heights
        stays &= above.take(columns + 1) <= heights
        stays = np.flatnonzero(stays)
        peaks = _tops_of_pairs(maps, heights.take(stays), columns.take(stays))
        found.append((peaks[0], peaks[1] + before))
        before += maps.numel()
    heights, indices = zip(*found, strict=True)
    return np.concatenate(heights), np.concatenate(indices)


def _tops_of_pairs(maps: Tensor, heights: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the maxima of pairs that no cell in the row next to them exceeds: heights and indices in the maps, `(n,)`.

    Args:
        maps: `(m, h, w)` heights.
        heights: `(p,)` maxima of an upper and a lower cell.
        pairs: `(p,)` flat indices of these pairs in an array `(m, ceil(h / 2), w + 1)`.
    """
    height, width = maps.shape[-2:]
    cells = maps.contiguous().numpy().ravel()
    line = pairs // (width + 1)
    column = pairs - line * (width + 1)
    of_map = line // -(-height // 2)
    upper = 2 * line - (height % 2) * of_map  # row in all maps; the last pair of a map with odd height has a single row
    in_lower = cells.take(upper * width + column) < heights
    # The row on the other side of the higher cell. At the border of the map, this is a row of the pair itself, whose
    # cells are already known not to exceed it.
    beside = upper + np.where(in_lower, 2, -1)
    first = of_map * height
    np.maximum(beside, first, out=beside)
    np.minimum(beside, first + (height - 1), out=beside)
    beside *= width
    # First the cell that rules out the most, so that few are left for the other two.
    stays = np.flatnonzero(cells.take(beside + column) <= heights)
    heights, column, beside = heights.take(stays), column.take(stays), beside.take(stays)
    row = (upper + in_lower).take(stays)
    stays = cells.take(beside + np.maximum(column - 1, 0)) <= heights
    stays &= cells.take(beside + np.minimum(column + 1, width - 1)) <= heights
    return heights[stays], (row * width + column)[stays]


def _highest_of(heights: np.ndarray, indices: np.ndarray, shape: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of the peaks of each map, as `highest_peaks` returns them.

    Args:
        heights: `(n,)`.
        indices: `(n,)` index in all maps.
        shape: M, h and w of the maps.
        count: N.
    """
    size = shape[1] * shape[2]
    of_map = indices // size
    order = np.lexsort((-heights, of_map))
    heights, of_map = heights.take(order), of_map.take(order)
    rank = np.arange(len(order)) - np.searchsorted(of_map, of_map)
    kept = np.flatnonzero(rank < count)
    at = of_map.take(kept) * count + rank.take(kept)
    scores = np.full((shape[0], count), -math.inf, dtype=heights.dtype)
    cells = np.zeros((shape[0], count), dtype=np.int64)
    scores.put(at, heights.take(kept))
    cells.put(at, (indices.take(order) - of_map * size).take(kept))
    return torch.from_numpy(scores), torch.from_numpy(cells)


def _suppress(maps: Tensor, radius: int, memory: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The heights `(M, h, w)` of cells that none in their window exceeds; something far below 0 elsewhere.

    Args:
        maps: `(M, h, w)` heights.
        radius: cells on each side of the window.
        memory: work memory for `_maximum_of_neighbours`, which is used if it is given. It will hold the result. Only
            for a radius of 1.
    """
    maximum = window_maximum(maps, radius) if memory is None else _maximum_of_neighbours(maps, memory)
    # A long step away from the maximum of the window. This is one pass; a comparison and `where` take several times as
    # long.
    return torch.lerp(maps, maximum, -_SUPPRESSION, out=None if memory is None else maximum)


def highest(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest cells of `(M, h, w)`: heights `(M, count)` in descending order and flat cells."""
    width = maps.shape[-1]
    # They are in the rows with the `count` highest maxima.
    rows = maps.amax(-1).topk(min(count, maps.shape[-2])).indices
    heights, cells = maps[torch.arange(len(maps), device=maps.device)[:, None], rows].flatten(1).topk(count)
    return heights, rows.gather(1, cells // width) * width + cells % width


def window_maximum(maps: Tensor, radius: int) -> Tensor:
    """Maximum over the square window of `2 * radius + 1` cells around each cell, with -inf outside the map.

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
        length = 1  # every cell holds the maximum of this many cells, starting with itself
        while length < 2 * radius + 1:
            step = min(length, 2 * radius + 1 - length)
            # No arithmetic on sizes: torch.export programs do not support it in a loop.
            if axis == -1:
                result = torch.maximum(result[..., :-step], result[..., step:])
            else:
                result = torch.maximum(result[..., :-step, :], result[..., step:, :])
            length += step
    return result


def _maximum_of_neighbours(maps: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
    """`window_maximum` with a radius of 1, for maps `(M, h, w)` with at least two rows and columns.

    Args:
        maps: `(M, h, w)`.
        memory: two tensors `(at least M, h, w)` to work in. The result is in the second one.
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


class Neighbourhoods(NamedTuple):
    """The 3x3 cells around peaks. They are all within the map, so a peak on its border is not in the middle.

    Attributes:
        heights: `(M, N, 3, 3)`. Arbitrary outside a map that is less than three cells wide or high.
        middles: `(M, N, 2)` column and row of the middle cell.
        peaks: `(M, N, 2)` column and row of the peak.
    """

    heights: Tensor
    middles: Tensor
    peaks: Tensor


def neighbourhoods(maps: Tensor, cells: Tensor) -> Neighbourhoods:
    """The cells around peaks.

    Args:
        maps: `(M, h, w)` heights.
        cells: `(M, N)` flat cells of the peaks.
    """
    height, width = maps.shape[-2:]
    rows, columns = cells // width, cells % width
    middle_rows, middle_columns = rows.clamp(1, height - 2), columns.clamp(1, width - 2)
    steps = torch.arange(-1, 2, device=maps.device)
    steps = steps[:, None] * width + steps
    around = (middle_rows * width + middle_columns)[..., None, None] + steps
    if height < 3 or width < 3:
        around = around.clamp(0, height * width - 1)
    heights = maps.flatten(1).gather(1, around.flatten(1)).view(around.shape)
    middles = torch.stack([middle_columns, middle_rows], dim=-1)
    return Neighbourhoods(heights, middles, torch.stack([columns, rows], dim=-1))


def tied_maps(heights: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Find the maps in which a peak may have an equal neighbour, or has the height of another peak.

    Args:
        heights: `(M, N, 3, 3)` heights around peaks, see `Neighbourhoods`.
        scores: `(M, N)` heights of the peaks in descending order.
        threshold: lower cells are not peaks.

    Returns:
        Indices of such maps, `(n,)` int64. Waits once for the device.
    """
    tied = (heights == scores[..., None, None]).sum((-2, -1)) > 1  # the peak itself is one
    tied[:, 1:] |= scores[:, 1:] == scores[:, :-1]
    return (tied & (scores >= threshold)).any(1).nonzero()[:, 0]
