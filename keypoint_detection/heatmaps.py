"""Keypoints to heatmaps and back, and the coordinate rule of the whole library.

A keypoint is `(x, y)` in continuous pixels: the origin is the top-left corner of the image, pixel `i` spans
`[i, i + 1)` and its centre is at `i + 0.5`. Cell `i` of a heatmap with stride `s` spans `[i * s, (i + 1) * s)`.
No other file of the library defines half a cell or pixel; those that add it use `HALF_CELL` from here.

B batch, C channels, K true keypoints, N decoded keypoints, M maps (B * C), H W image, h w heatmap.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from keypoint_detection.peaks import (
    Neighbourhoods,
    highest,
    highest_peaks,
    is_exporting,
    neighbourhoods,
    tied_maps,
    window_maximum,
)
from keypoint_detection.plateaus import merge_ties
from keypoint_detection.subpixel import SMALLEST_HEIGHT, vertices

# Cells on each side of a keypoint that are always rendered, however small sigma is: decoding reads cells up to two
# away from the peak.
_SMALLEST_RADIUS = 2.5
# Where a missing keypoint is drawn, in pixels: not at infinity, because the gradient would be NaN, but far beyond the
# largest sigma. Its square is just below the largest float32 number.
_FAR = -1.5e19
# With more keypoints per map than this, it is worth checking whether most of them are missing ones.
_CROWD = 64
# The smallest and the largest sigma: beyond them, float32 cannot hold the square of sigma.
SIGMAS = (1e-18, 1e18)
# The height that a peak must reach.
PEAK_THRESHOLD = 0.01
# From the border of a cell or pixel to its centre, for code that uses numpy or writes a graph.
HALF_CELL = 0.5


def heatmap_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of the heatmap of an image.

    Args:
        size: height and width of the image in pixels.
        stride: pixels per cell of the heatmap.

    Returns:
        `(ceil(H / stride), ceil(W / stride))`.
    """
    return -(-size[0] // stride), -(-size[1] // stride)


def cell_centres(n: int, stride: int, *, device: torch.device | str | None = None) -> Tensor:
    """Pixel coordinates of the centres of `n` cells in a row, `(n,)` float32."""
    return (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * stride


def cell_indices(keypoints: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """The cell that holds each keypoint.

    Args:
        keypoints: `(..., K, 2)` xy in pixels, NaN for none.
        sizes: `(..., 2)` int64 height and width in pixels of each map's image, without padding.
        stride: pixels per cell of the heatmap.

    Returns:
        `(..., K, 2)` int64 column and row, those of the nearest cell for a keypoint outside the image; -1 for NaN.
    """
    last = (-(-sizes // stride) - 1).flip(-1)[..., None, :]
    cells = (keypoints / stride).floor().clamp_min(0).minimum(last)
    missing = keypoints.isnan().any(-1, keepdim=True)
    return cells.masked_fill(missing, -1).long()


def valid_mask(sizes: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Find the cells that cover some of the image and not just padding.

    The border of the image may cut the last row and column of cells. They count as image, because a keypoint near that
    border has its peak there.

    Args:
        sizes: `(B, 2)` height and width in pixels of the part of each image that is not padding.
        size: height and width of the padded batch in pixels.
        stride: pixels per cell of the heatmap.

    Returns:
        `(B, 1, h, w)` bool.
    """
    height, width = heatmap_size(size, stride)
    rows = torch.arange(height, device=sizes.device) * stride < sizes[:, :1]
    columns = torch.arange(width, device=sizes.device) * stride < sizes[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def window_radius(min_distance: float, stride: int) -> int:
    """Number of cells on each side of the window in which a peak is highest, for the `min_distance` of `decode`."""
    return max(1, math.floor(min_distance / stride))


def entropy(heatmaps: Tensor) -> Tensor:
    """Binary entropy of every cell in nats: the minimum of the binary cross-entropy with these heatmaps.

    Args:
        heatmaps: any shape, in [0, 1].

    Returns:
        The same shape, 0 where a cell is 0 or 1.
    """
    # torch's own `entr` is slow on a CPU, and so are logarithms of 0 and of the smallest numbers.
    smallest = max(1e-30, torch.finfo(heatmaps.dtype).tiny)
    rest = 1 - heatmaps
    return -(heatmaps * heatmaps.clamp(min=smallest).log() + rest * rest.clamp(min=smallest).log())


def render(keypoints: Tensor, size: tuple[int, int], sigma: float, stride: int = 1) -> Tensor:
    """Draw a Gaussian of height 1 at each keypoint and combine those of one map by their maximum.

    The result is exact wherever it exceeds 1e-6; smaller values may be 0. Only a patch around each keypoint is
    computed, as the product of a row and a column, so rendering costs little more than allocating the output.

    Args:
        keypoints: `(..., K, 2)` xy in pixels of the image, NaN for none. A keypoint outside the image still adds the
            part of its Gaussian that reaches inside.
        size: height and width of the image in pixels.
        sigma: standard deviation of the Gaussian in pixels of the image.
        stride: pixels per cell of the heatmap.

    Returns:
        `(..., ceil(H / stride), ceil(W / stride))` in [0, 1], float32 (float64 for float64 keypoints).

    Raises:
        ValueError: If sigma is not from 1e-18 to 1e18, stride is not positive, or the keypoints have another shape.
    """
    if not SIGMAS[0] <= sigma <= SIGMAS[1] or stride < 1:
        raise ValueError(f"sigma (1e-18 to 1e18) and stride must be positive, got sigma {sigma} and stride {stride}")
    if keypoints.ndim < 2 or keypoints.shape[-1] != 2:
        raise ValueError(f"keypoints of shape {tuple(keypoints.shape)}, expected (..., K, 2)")
    height, width = heatmap_size(size, stride)
    dtype = torch.promote_types(keypoints.dtype, torch.float32)
    maps, count = math.prod(keypoints.shape[:-2]), keypoints.shape[-2]
    heatmaps = _zeros(maps, height * width, dtype, keypoints.device)
    if heatmaps.numel() and count:
        xy, target, first_row = keypoints.reshape(maps, count, 2).to(dtype), heatmaps, 0
        if count > _CROWD and xy.device.type == "cpu":
            # If one map has very many keypoints, the others are padded with missing ones. Then all maps are drawn as
            # one, with only the keypoints that exist.
            present = ~xy.isnan().any(-1)
            if 2 * present.sum() < present.numel():
                xy, target, first_row = xy[present][None], heatmaps.view(1, -1), present.nonzero()[:, :1] * height
        # A missing keypoint is far away: its patch is somewhere in the map and all zeros.
        xy = xy.nan_to_num(nan=_FAR, posinf=_FAR, neginf=_FAR)
        columns, column_heights = _patch_side(xy[..., 0], width, sigma, stride)
        rows, row_heights = _patch_side(xy[..., 1], height, sigma, stride)
        cells = (rows + first_row)[..., :, None] * width + columns[..., None, :]
        values = row_heights[..., :, None] * column_heights[..., None, :]
        target.scatter_reduce_(1, cells.flatten(1), values.flatten(1), "amax")
    return heatmaps.view(*keypoints.shape[:-2], height, width)


def _zeros(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.zeros`, in a fraction of its time on a CPU."""
    if device.type != "cpu":
        return torch.zeros(rows, columns, dtype=dtype, device=device)
    # numpy asks Linux for huge pages, torch does not; for large arrays nearly all of the time goes to page faults.
    return torch.from_numpy(np.zeros((rows, columns), dtype=np.float64 if dtype == torch.float64 else np.float32))


def _patch_side(positions: Tensor, cells: int, sigma: float, stride: int) -> tuple[Tensor, Tensor]:
    """One axis of the patches around keypoints: `(M, K)` pixels -> P cells each, `(M, K, P)`, and their heights."""
    radius = max(sigma / stride * math.sqrt(-2 * math.log(SMALLEST_HEIGHT)), _SMALLEST_RADIUS)
    length = min(cells, math.floor(2 * radius) + 1)
    first = (positions / stride - 0.5 - radius).ceil().clamp(0, cells - length)
    index = first[..., None] + torch.arange(length, device=positions.device)
    distances = (index + 0.5) * stride - positions[..., None]
    return index.long(), torch.exp(distances.square() * (-0.5 / sigma**2))


@torch.no_grad()
def decode(
    heatmaps: Tensor, max_keypoints: int, min_distance: float = 1, threshold: float = PEAK_THRESHOLD, stride: int = 1
) -> tuple[Tensor, Tensor]:
    """Find the peaks of heatmaps, with sub-pixel positions.

    A peak is a cell that no cell within `min_distance` (in a square window) exceeds. Connected cells of equal height
    are one peak. Its position comes from a quadratic surface fitted to the logarithms of the peak and its neighbours,
    which is exact for a Gaussian; at a border, the fit uses the two nearest cells on the inner side.

    Args:
        heatmaps: `(..., h, w)` in [0, 1].
        max_keypoints: N, how many of the highest peaks of each map are returned.
        min_distance: peaks of one map whose cells are this close in x and in y, in pixels of the image, are suppressed
            by the highest one. It is rounded down to whole cells and always covers at least the neighbouring ones.
        threshold: the height that a peak must reach.
        stride: pixels of the image per cell of the heatmap.

    Returns:
        Keypoints `(..., N, 2)` xy in pixels of the image and their scores `(..., N)`, the heights of the peaks, in
        descending order. If there are fewer than N peaks, the rest is NaN with a score of 0.
    """
    lead, (height, width) = heatmaps.shape[:-2], heatmaps.shape[-2:]
    dtype = torch.promote_types(heatmaps.dtype, torch.float32)
    maps = heatmaps.reshape(math.prod(lead), height, width).to(dtype)
    # A window larger than the map would find nothing more and take memory. A graph does not know the map's size.
    farthest = math.inf if is_exporting() else stride * max(height, width)
    radius = window_radius(min(min_distance, farthest), stride)
    count = min(max_keypoints, height * width)
    # One extra peak shows whether the last one is tied with one that is left out. A graph treats all maps as tied.
    wanted = count if is_exporting() else min(count + 1, height * width)
    scores, cells = highest_peaks(maps, wanted, radius, threshold)
    around = neighbourhoods(maps, cells)
    xy = refine(around, (height, width))[:, :count]
    tied = torch.arange(len(maps)) if is_exporting() else tied_maps(around.heights, scores, threshold)
    scores = scores[:, :count]
    _decode_tied(maps, tied, scores, xy, radius, threshold)
    missing = ~(scores >= threshold)
    xy = to_pixels(xy, stride).masked_fill(missing[..., None], math.nan)
    scores = scores.masked_fill(missing, 0)
    absent = max_keypoints - count
    xy, scores = F.pad(xy, (0, 0, 0, absent), value=math.nan), F.pad(scores, (0, absent))
    return xy.view(*lead, max_keypoints, 2), scores.view(*lead, max_keypoints)


def _decode_tied(maps: Tensor, tied: Tensor, scores: Tensor, xy: Tensor, radius: int, threshold: float) -> None:
    """Correct, in place, scores `(M, N)` and positions `(M, N, 2)` of the few maps `tied` `(n,)` with equal cells."""
    if len(tied):
        maps = maps[tied]
        is_peak, centres = merge_ties(maps, (maps == window_maximum(maps, radius)) & (maps >= threshold), radius)
        scores[tied], cells = highest(maps.where(is_peak, -math.inf), scores.shape[1])
        centres = centres.flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, 2))
        xy[tied] = torch.where(centres.isnan(), refine(neighbourhoods(maps, cells), maps.shape[-2:]), centres)


def to_pixels(cells: Tensor, stride: int) -> Tensor:
    """Convert real-valued columns and rows of cells (the centre of cell `i` is `i`) to pixels of the image."""
    return (cells + 0.5) * stride


def refine(around: Neighbourhoods, size: tuple[int, int]) -> Tensor:
    """Sub-pixel positions of peaks, from the 3x3 cells around them (`subpixel.vertices`).

    Args:
        around: The cells around N peaks of each of M maps.
        size: h and w of the maps.

    Returns:
        `(M, N, 2)` real-valued column and row, within half a cell of the peak.
    """
    return vertices(around, size).clamp(around.peaks - 0.5, around.peaks + 0.5)


def transform_points(points: Tensor, homography: Tensor) -> Tensor:
    """Apply a homography to points.

    Args:
        points: `(..., 2)` xy in pixels, or `(B, ..., 2)` for batched homographies. NaN stays NaN.
        homography: `(3, 3)`, or `(B, 3, 3)` with one for each entry along the first axis of `points`.

    Returns:
        The shape and type of `points`, computed in the higher of the two precisions.
    """
    inner = [1] * (points.ndim - homography.ndim + 1)
    by_x, by_y, constant = homography.reshape(*homography.shape[:-2], *inner, 3, 3).unbind(-1)
    result = points[..., :1] * by_x + points[..., 1:] * by_y + constant
    return (result[..., :2] / result[..., 2:]).to(points.dtype)


def sampling_grid(homography: Tensor, size: tuple[int, int], source_size: tuple[int, int]) -> Tensor:
    """Where each output pixel is in the source image, in the form that `grid_sample` reads.

    Args:
        homography: `(3, 3)`, from pixels of the output to pixels of the source.
        size: height and width of the output in pixels.
        source_size: height and width of the source in pixels.

    Returns:
        `(1, H, W, 2)` float32 grid for `torch.nn.functional.grid_sample(..., align_corners=False)`.
    """
    extent = homography.new_tensor([[2 / source_size[1], 0, -1], [0, 2 / source_size[0], -1], [0, 0, 1]])
    by_x, by_y, constant = (extent @ homography).to(torch.float64).unbind(-1)
    x = cell_centres(size[1], 1, device=homography.device)
    y = cell_centres(size[0], 1, device=homography.device)[:, None]
    # Adding a row and a column per coordinate takes a fraction of the time of a matrix product per pixel.
    lines = [(x * by_x[i].item(), y * by_y[i].item() + constant[i].item()) for i in range(3)]
    grid = torch.empty(1, *size, 2, device=homography.device)
    inverse = torch.add(*lines[2]).reciprocal_()
    for plane, (row, column) in zip(grid[0].unbind(-1), lines[:2], strict=True):
        torch.mul(torch.add(row, column), inverse, out=plane)
    return grid
