"""Turns tensors into pictures: heatmaps and keypoints over images, in grids. Does not know about loggers.

Pictures are `(H, W, 3)` uint8 RGB arrays. B batch, C channels, K keypoints, N detections, H W image, h w heatmap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from keypoint_detection.markers import draw_keypoints, to_picture
from keypoint_detection.picture_layout import (
    add_legend,
    add_title,
    channel_colours,
    fill_width,
    image_grid,
    named_grid,
    resize,
    stack,
    width_within,
)

PANEL_WIDTH = 2200
PANEL_COLUMNS = 11
LARGEST_CELL = 288


def _shadows(images: Tensor, width: int | None) -> np.ndarray:
    """Images `(B, 3, H, W)` as the dark gray background of heatmaps, `(B, H, W)` uint8, scaled to a width."""
    pictures = [resize(to_picture(image), width or image.shape[-1]) for image in images]
    return np.stack([0.8 * picture.mean(axis=2) for picture in pictures]).round().astype(np.uint8)


def _scale(heatmaps: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Scales heatmaps `(B, C, h, w)` to the size of a picture about the centres of cells, and cuts off the padding.

    Args:
        heatmaps: Values in [0, 1].
        image_size: Height and width of the image; the heatmaps cover it rounded up to a multiple of their stride (1, 2
            or 4).
        size: Height and width of the picture to which the image was scaled.
    """
    h, w = heatmaps.shape[-2:]
    # The quotient may be below the stride, as the last cell may be mostly padding: at stride 4, 9 pixels have 3 cells.
    stride = 2 ** math.ceil(math.log2(max(image_size[0] / h, image_size[1] / w)))
    heatmaps = heatmaps.detach().cpu().float().clamp(0, 1)
    scale = stride * size[1] / image_size[1]
    if scale <= 0.5:  # peaks narrower than a pixel of the picture must stay visible
        step = math.floor(1 / scale)
        heatmaps, scale = F.max_pool2d(heatmaps, step, ceil_mode=True), scale * step
    if scale != 1:
        heatmaps = F.pad(heatmaps, (0, 2, 0, 2), mode="replicate")  # the picture may be a pixel larger
        heatmaps = F.interpolate(heatmaps, scale_factor=scale, mode="bilinear", recompute_scale_factor=False)
    return heatmaps[..., : size[0], : size[1]]


def _inks() -> np.ndarray:
    """Colours `(256 * 256, 3)` uint8 of each level of a heatmap over each level of gray."""
    levels = np.linspace(0, 1, 256)
    opacity = 0.9 * np.sqrt(levels)[:, None, None]
    # The dark end of the colour map would look like shadows in the image, so the colours start a little above it.
    ink = matplotlib.colormaps["inferno"](0.25 + 0.75 * levels)[:, None, :3]
    blended = opacity * 255 * ink + (1 - opacity) * np.arange(256)[:, None]
    return blended.round().astype(np.uint8).reshape(-1, 3)


def overlay_heatmaps(images: Tensor, heatmaps: Tensor, width: int | None = None) -> np.ndarray:
    """Lays one heatmap over each image.

    Args:
        images: `(B, 3, H, W)` float in [0, 1], or one image for all heatmaps.
        heatmaps: `(B, h, w)` float in [0, 1].
        width: Width of the pictures in pixels; W if None.

    Returns:
        Pictures `(B, width * H / W, width, 3)` uint8.
    """
    shadows = _shadows(images, width)
    values = _scale(heatmaps[:, None], images.shape[-2:], shadows.shape[1:])[:, 0].mul(255).round_().byte().numpy()
    return _inks().take(256 * values.astype(np.int32) + shadows, axis=0)


def compose_heatmaps(images: Tensor, heatmaps: Tensor, width: int | None = None) -> np.ndarray:
    """Lays all channels over each image, each in its own colour.

    Args:
        images: `(B, 3, H, W)` float in [0, 1], or one image for all heatmaps.
        heatmaps: `(B, C, h, w)` float in [0, 1].
        width: Width of the pictures in pixels; W if None.

    Returns:
        Pictures `(B, width * H / W, width, 3)` uint8.
    """
    shadows = _shadows(images, width)
    palette = torch.from_numpy(channel_colours(heatmaps.shape[1]).astype(np.float32) / 255)
    weights = heatmaps.detach().cpu().float().clamp(0, 1) ** 2
    mixed = torch.einsum("bchw,ck->bkhw", weights, palette) / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    layers = torch.cat((mixed, heatmaps.detach().cpu().float().amax(dim=1, keepdim=True)), dim=1)
    scaled = _scale(layers, images.shape[-2:], shadows.shape[1:]).permute(0, 2, 3, 1).numpy()
    opacity = 0.9 * np.sqrt(scaled[..., 3:])
    picture = opacity * 255 * scaled[..., :3] + (1 - opacity) * shadows[..., None]
    return np.rint(picture).astype(np.uint8)


def _cell_width(columns: int, image_width: int) -> int:
    """Width of a picture in a panel: as large as the panel allows; for small images, a multiple of their width."""
    width = min(PANEL_WIDTH // columns, LARGEST_CELL)
    return width // image_width * image_width if width >= image_width else width


def heatmap_panel(images: Tensor, predicted: Tensor, true: Tensor, channel_names: Sequence[str]) -> np.ndarray:
    """Predicted above true heatmaps of each image: first all channels in one picture, then one column per channel.

    With few channels, several images fit side by side. Channels that do not fit continue below, for all images again.

    Args:
        images: `(B, 3, H, W)` float in [0, 1].
        predicted: `(B, C, h, w)` float in [0, 1].
        true: `(B, C, h, w)` float in [0, 1].
        channel_names: C names.

    Returns:
        The panel.
    """
    captions = ["all channels", *channel_names]
    blocks = math.ceil(len(captions) / PANEL_COLUMNS)
    columns = math.ceil(len(captions) / blocks)
    width = _cell_width(columns, images.shape[-1])
    inner = width_within(width, images.shape[-2:])
    rows_of_images = []
    for index in range(len(images)):
        image = images[index : index + 1]
        heatmaps = torch.stack((predicted[index], true[index]))
        composites = compose_heatmaps(image, heatmaps, inner)
        overlays = overlay_heatmaps(image, heatmaps.flatten(0, 1), inner)
        rows = []
        for title, composite, channels in zip(("predicted", "true"), composites, np.split(overlays, 2), strict=True):
            pictures = [fill_width(picture, width) for picture in (composite, *channels)]
            rows.append([add_title(p, title) if i % columns == 0 else p for i, p in enumerate(pictures)])
        rows_of_images.append(rows)
    across = min(len(images), PANEL_WIDTH // (columns * width)) if blocks == 1 else 1
    across = math.ceil(len(images) / math.ceil(len(images) / across))  # as many in every row
    groups = (rows_of_images[start : start + across] for start in range(0, len(images), across))
    rows = [[*itertools.chain(*side_by_side)] for group in groups for side_by_side in zip(*group, strict=True)]
    if across > 1:
        return image_grid(rows, captions * across)
    starts = range(0, len(captions), columns)
    grids = [image_grid([row[i : i + columns] for row in rows], captions[i : i + columns]) for i in starts]
    return stack(grids)


def keypoint_panel(
    images: Tensor,
    xy: Tensor,
    scores: Tensor,
    true: Tensor,
    channel_names: Sequence[str],
    score_thresholds: Sequence[float],
    image_names: Sequence[str],
) -> np.ndarray:
    """Predicted and true keypoints of each image, under its name, with a legend that gives scores for each channel.

    Args:
        images: `(B, 3, H, W)` float in [0, 1].
        xy: `(B, C, N, 2)` detections in continuous pixels of `images`, NaN for none.
        scores: `(B, C, N)` in [0, 1].
        true: `(B, C, K, 2)` xy, NaN for none.
        channel_names: C names.
        score_thresholds: C scores; detections below the one of their channel are not drawn.
        image_names: B names.

    Returns:
        The panel.
    """
    xy, scores, true = (tensor.detach().cpu().double() for tensor in (xy, scores, true))
    columns = min(len(images), 4)
    width = max(360, min(640, 1440 // columns))
    pictures = []
    for image, points, certainties, truths in zip(images, xy.numpy(), scores.numpy(), true.numpy(), strict=True):
        kept = [certainty >= lowest for certainty, lowest in zip(certainties, score_thresholds, strict=True)]
        pictures.append(
            draw_keypoints(
                image,
                {name: p[k] for name, p, k in zip(channel_names, points, kept, strict=True)},
                dict(zip(channel_names, truths, strict=True)),
                {name: c[k] for name, c, k in zip(channel_names, certainties, kept, strict=True)},
                width,
            )
        )
    grid = named_grid(pictures, image_names, columns)
    highest = scores.amax(dim=(0, 2)).tolist() if scores.numel() else [0.0] * len(channel_names)
    numbers = zip(channel_names, score_thresholds, highest, strict=True)
    entries = {name: f"≥ {_score(lowest)}, max {_score(highest)}" for name, lowest, highest in numbers}
    marks = (
        "cross: predicted, larger cross: higher score, ring: true, ≥: drawn from this score, max: highest score here"
    )
    return add_legend(grid, entries, marks)


def _score(score: float) -> str:
    return f"{score:.2f}" if score >= 0.1 or score == 0 else f"{score:.2g}"
