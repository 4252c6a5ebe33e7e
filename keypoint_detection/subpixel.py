"""Sub-pixel positions of the peaks of a heatmap.

Everything here is in cells. M maps, N peaks per map, h w heatmap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keypoint_detection.peaks import Neighbourhoods

# Weight of each of the two outer rows or columns around a peak; the middle one gets the rest. The logarithms of the
# outer ones are less certain, and another keypoint may be near (benchmarks/README.md).
OUTER_WEIGHT = 0.2
# Cells below this height are not reliable: most of their logarithm is rounding error, which differs between devices.
# So `heatmaps.render` may cut off its Gaussians there.
SMALLEST_HEIGHT = 1e-6
# Largest mixed derivative, as a fraction of that of an endless ridge. It allows peaks six times as long as wide.
LARGEST_TWIST = 0.95


def vertices(around: Neighbourhoods, size: tuple[int, int]) -> Tensor:
    """Vertices of quadratic surfaces fitted to the logarithms of the 3x3 cells around peaks.

    The logarithm of a Gaussian is such a surface, however it is stretched and rotated: slopes, curvatures and the mixed
    derivative give its vertex (DARK, Zhang et al. 2020). They come from a least-squares fit with fixed weights (after
    Guo 2011, A simple algorithm for fitting a Gaussian function). If one of the cells is close to 0, or the peak is on
    the border of the map and so not in the middle of the cells, the fit uses only the peak's own row and column.

    Args:
        around: The cells around N peaks of each of M maps.
        size: h and w of the maps.

    Returns:
        `(M, N, 2)` real-valued column and row. Along an axis in which the surface does not curve downwards, it is the
        position of the peak's cell.
    """
    logarithms = around.heights.clamp_min(torch.finfo(around.heights.dtype).tiny).log()
    places = around.peaks - around.middles + 1  # 0, 1 or 2, of the peak among the cells
    has_three = [length >= 3 for length in reversed(size)]
    is_high = around.heights.amin((-2, -1)) >= SMALLEST_HEIGHT
    is_inside = [is_high & (place == 1) & three for place, three in zip(places.unbind(-1), has_three, strict=True)]
    lines = [
        _line(logarithms, places[..., 1], is_inside[1], -2),
        _line(logarithms, places[..., 0], is_inside[0], -1),
    ]
    before, centre, after = torch.stack(lines, dim=-2).unbind(-1)
    slope, bend = (after - before) / 2, 2 * centre - before - after
    is_bent = torch.stack([(bend[..., axis] > 0) & three for axis, three in enumerate(has_three)], dim=-1)
    bend = bend.where(is_bent, 1.0)
    (upper_left, upper_right), (lower_left, lower_right) = (
        row.unbind(-1) for row in logarithms[..., ::2, ::2].unbind(-2)
    )
    twist = (upper_left - upper_right - lower_left + lower_right) / 4
    limit = LARGEST_TWIST * bend.prod(-1).sqrt() * (is_bent.all(-1) & is_inside[0] & is_inside[1])
    twist = twist.clamp(-limit, limit)[..., None]
    shift = (bend.flip(-1) * slope + twist * slope.flip(-1)) / (bend.prod(-1, keepdim=True) - twist.square())
    return torch.where(is_bent, around.middles + shift, around.peaks)


def _line(logarithms: Tensor, place: Tensor, is_inside: Tensor, axis: int) -> Tensor:
    """Averages the three rows or columns, along `axis` of `(M, N, 3, 3)`, into one: `(M, N, 3)`.

    Args:
        logarithms: Logarithms of the cells.
        place: `(M, N)`, which of the three the peak is in.
        is_inside: `(M, N)` bool, whether all three count, or only the one with the peak.
        axis: -2 for rows, -1 for columns.
    """
    index = place[..., None, None].expand(*place.shape, *((1, 3) if axis == -2 else (3, 1)))
    own = logarithms.gather(axis, index).squeeze(axis)
    first, middle, last = logarithms.unbind(axis)
    return torch.where(is_inside[..., None], torch.lerp(middle, (first + last) / 2, 2 * OUTER_WEIGHT), own)
