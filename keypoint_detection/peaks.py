"""Finds the cells of heatmaps that are peaks, and settles which one counts where several have the same height.

Everything here is in cells; `heatmaps.decode` turns it into positions. M or T maps, h w heatmap, N peaks per map.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops import while_loop

# Cells of all maps that are worked on at once: what stays in the cache of a CPU, and little memory.
_CELLS_AT_ONCE = 2**19
# A cell that is no peak loses this many times what it lacks to the maximum of its window.
_SUPPRESSION = 1e30


def is_exporting() -> bool:
    """Whether a graph is being recorded, which cannot branch on values and takes any number of maps."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def highest_peaks(maps: Tensor, count: int, radius: int) -> tuple[Tensor, Tensor]:
    """Find the highest cells that no cell in their window exceeds.

    Args:
        maps: `(M, h, w)` heights.
        count: N, at most `h * w`.
        radius: cells on each side of the window.

    Returns:
        Heights `(M, N)` in descending order, far below 0 where there are fewer, and flat cells `(M, N)`.
    """
    if is_exporting():
        return highest(_suppress(maps, radius), count)
    groups = maps.split(max(1, _CELLS_AT_ONCE // max(1, maps.shape[-2] * maps.shape[-1])))
    memory = None
    if radius == 1 and min(maps.shape[-2:]) > 1:
        # New memory for every step on every group would cost more than the steps.
        memory = torch.empty_like(groups[0]), torch.empty_like(groups[0])
    scores, cells = zip(*(highest(_suppress(group, radius, memory), count) for group in groups), strict=True)
    return torch.cat(scores), torch.cat(cells)


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


def merge_ties(maps: Tensor, is_peak: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Leave one peak of each plateau, and one of the peaks of equal height within a window.

    A plateau beside which an equal cell has a higher neighbour is a shoulder and no peak.

    Args:
        maps: `(T, h, w)` heights.
        is_peak: `(T, h, w)` bool, cells that no cell of their window exceeds.
        radius: cells on each side of the window, at least 1.

    Returns:
        The peaks that stay, `(T, h, w)` bool, and `(T, h, w, 2)` column and row of the centre of each one's plateau:
        NaN along an axis in which it is less than three cells long, where its neighbours tell its position better.
    """
    height, width = maps.shape[-2:]
    shoulder = is_peak & (window_maximum(maps.masked_fill(is_peak, -math.inf), 1) == maps)
    members = is_peak.flatten().nonzero()[:, 0]
    roots, group = torch.unique(_connect(is_peak).flatten()[members], return_inverse=True)
    on_shoulder = _reduce(shoulder.flatten()[members].long(), group, roots.shape[0], "amax").bool()

    positions = torch.stack([members % width, members // width % height], dim=1)
    groups = group[:, None].expand(-1, 2)
    lowest, highest = (_reduce(positions, groups, roots.shape[0], how) for how in ("amin", "amax"))
    means = _reduce(positions.to(maps.dtype), groups, roots.shape[0], "mean")
    centres = maps.new_full((maps.numel(), 2), math.nan)
    centres[roots] = means.masked_fill(highest - lowest < 2, math.nan)

    stays = torch.zeros_like(is_peak).flatten()
    stays[roots] = ~on_shoulder
    stays = stays.view_as(is_peak)
    return _spread_out(stays, radius) if radius > 1 else stays, centres.view(*maps.shape, 2)


def _connect(mask: Tensor) -> Tensor:
    """Label each True cell of `(T, h, w)` with the largest flat index in its 8-connected region; -1 elsewhere."""
    cells = torch.arange(mask.numel(), device=mask.device).where(mask.flatten(), -1)

    def spread(labels: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
        inside = mask.flatten()
        wider = window_maximum(labels.view(mask.shape), 1).flatten().where(inside, -1)
        # A cell also takes over what its label's cell has learnt, so that labels travel twice as far every round.
        wider = torch.maximum(wider, wider[wider.clamp_min(0)].where(inside, -1))
        return wider, (wider != labels).any()

    labels, _ = _repeat(lambda labels, changed: changed.clone(), spread, (cells, mask.new_ones(())))
    return labels.view(mask.shape)


def _spread_out(mask: Tensor, radius: int) -> Tensor:
    """Go through the True cells of `(T, h, w)` from the last to the first; drop those in the window of a kept one."""
    order = torch.arange(mask.numel(), device=mask.device)

    def highest_in_window(values: Tensor) -> Tensor:
        return window_maximum(values.view(mask.shape), radius).flatten()

    def drop(kept: Tensor, waiting: Tensor) -> tuple[Tensor, Tensor]:
        waiting_order = order.where(waiting, -1)
        winners = waiting & (highest_in_window(waiting_order) == waiting_order)
        return kept | winners, waiting & (highest_in_window(winners.int()) == 0)

    states = (torch.zeros_like(mask).flatten(), mask.flatten().clone())
    kept, _ = _repeat(lambda kept, waiting: waiting.any(), drop, states)
    return kept.view(mask.shape)


def _repeat(
    goes_on: Callable[..., Tensor], step: Callable[..., tuple[Tensor, ...]], states: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Repeat a step on tensors while a condition on them holds; a loop of the graph where one is recorded.

    A recorded loop takes tensors in one row, whose memory layout it knows, and none that share memory.
    """
    if is_exporting():
        return while_loop(goes_on, step, states)
    while goes_on(*states):
        states = step(*states)
    return states


def _reduce(values: Tensor, groups: Tensor, count: int, how: str) -> Tensor:
    """Reduce rows of `values` that share a group: `(n, ...)` -> `(count, ...)`."""
    result = values.new_zeros(count, *values.shape[1:])
    return result.scatter_reduce(0, groups, values, how, include_self=False)
