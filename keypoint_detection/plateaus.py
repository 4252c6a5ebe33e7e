"""Decides which peaks of a heatmap count if several have the same height.

Everything here is in cells. T maps, h w heatmap.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops import while_loop

from keypoint_detection.peaks import is_exporting, window_maximum


def merge_ties(maps: Tensor, is_peak: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Keep one peak of each plateau, and one of the peaks of equal height within a window.

    A plateau is a shoulder and not a peak if an equal cell next to it has a higher cell in its own window.

    Args:
        maps: `(T, h, w)` heights.
        is_peak: `(T, h, w)` bool, cells that no cell in their window exceeds.
        radius: cells on each side of the window, at least 1.

    Returns:
        The peaks that are kept, `(T, h, w)` bool, and `(T, h, w, 2)` column and row of the centres of their plateaus:
        NaN along an axis in which a plateau is a single cell long, because its neighbours give a better position there.
    """
    height, width = maps.shape[-2:]
    shoulder = is_peak & (window_maximum(maps.masked_fill(is_peak, -math.inf), 1) == maps)
    members = is_peak.flatten().nonzero()[:, 0]
    roots, group = torch.unique(_connect(is_peak).flatten()[members], return_inverse=True)
    on_shoulder = _reduce(shoulder.flatten()[members].long(), group, roots.shape[0], "amax").bool()

    positions = torch.stack([members % width, members // width % height], dim=1)
    groups = group[:, None].expand(-1, 2)
    lowest, highest = (_reduce(positions, groups, roots.shape[0], how) for how in ("amin", "amax"))
    # Summed as integers: float32 cannot hold the sum of many positions.
    sums, counts = (_reduce(values, groups, roots.shape[0], "sum") for values in (positions, torch.ones_like(groups)))
    means = sums.to(maps.dtype) / counts
    centres = maps.new_full((maps.numel(), 2), math.nan)
    centres[roots] = means.masked_fill(highest == lowest, math.nan)

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
        # A cell also takes the label of the cell that its label names, so labels travel twice as far in every round.
        wider = torch.maximum(wider, wider[wider.clamp_min(0)].where(inside, -1))
        return wider, (wider != labels).any()

    labels, _ = _repeat(lambda labels, changed: changed.clone(), spread, (cells, mask.new_ones(())))
    return labels.view(mask.shape)


def _spread_out(mask: Tensor, radius: int) -> Tensor:
    """Go through the True cells of `(T, h, w)` from last to first, and drop those in the window of a kept one."""
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
    """Repeat a step on tensors while a condition on them holds; this becomes a loop of the graph if one is recorded.

    A recorded loop takes only one-dimensional tensors, whose memory layout it knows, and none that share memory.
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
