"""Draws keypoints into images. Does not know about loggers.

Pictures are `(H, W, 3)` uint8 RGB arrays. K keypoints, N detections, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from keypoint_detection.picture_layout import (
    channel_colours,
    fill_width,
    is_numbered,
    resize,
    width_within,
    write_number,
)

# Drawing at twice the size and averaging smooths the markers.
SMOOTHING = 2
# Pixels of the picture between a ring and the next larger one around it; keypoints closer than this share a place.
RING_STEP = 3.0
# Width in pixels above which lines get thicker: wider pictures are usually viewed scaled down.
FINE_WIDTH = 1200


class Mark(NamedTuple):
    """A keypoint to draw, in pixels of the canvas.

    Attributes:
        channel: Index of its channel.
        number: Its index in that channel.
        x: Horizontal position of its centre.
        y: Vertical position of its centre.
        before: How many keypoints before it share its place.
        reach: Radius of its ring.
    """

    channel: int
    number: int
    x: float
    y: float
    before: int
    reach: float


def to_picture(image: Tensor | np.ndarray) -> np.ndarray:
    """Turns an image into a picture.

    Args:
        image: `(3, H, W)` float in [0, 1], or `(H, W, 3)` uint8, which is returned as it is.

    Returns:
        `(H, W, 3)` uint8.
    """
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image
    values = torch.as_tensor(image).detach().cpu().float().clamp(0, 1)
    return (255 * values).round().byte().permute(1, 2, 0).numpy()


def draw_keypoints(
    image: Tensor | np.ndarray,
    predicted: Mapping[str, np.ndarray] | None = None,
    true: Mapping[str, np.ndarray] | None = None,
    scores: Mapping[str, np.ndarray] | None = None,
    width: int | None = None,
) -> np.ndarray:
    """Draws predicted keypoints as crosses and true ones as rings, in the colour of their channel.

    Rings at the same place are concentric. If there are many channels, each ring (or each cross, if there are no true
    keypoints) has the number of its channel beside it, as in the legend.

    Args:
        image: `(3, H, W)` float in [0, 1] or `(H, W, 3)` uint8.
        predicted: For each channel `(N, 2)` xy in continuous pixels of `image`; NaN is skipped.
        true: For each channel `(K, 2)` xy.
        scores: For each channel `(N,)` in [0, 1]; the higher the score, the larger the cross.
        width: Width of the result in pixels; a very tall image does not fill it and is centred. None keeps the width
            of the image.

    Returns:
        The picture.
    """
    picture = to_picture(image)
    predicted, true, scores = predicted or {}, true or {}, scores or {}
    names = list(dict.fromkeys([*true, *predicted]))
    inner = picture.shape[1] if width is None else width_within(width, picture.shape)
    width = inner if width is None else width
    scale = SMOOTHING * inner / picture.shape[1]
    canvas = Image.fromarray(resize(picture, SMOOTHING * inner))
    draw = ImageDraw.Draw(canvas)
    radius = SMOOTHING * max(3.0, inner / 70)
    line = SMOOTHING * max(1.0, inner / FINE_WIDTH)
    colours = [tuple(colour) for colour in channel_colours(len(names)).tolist()]
    rings = list(_marks([true.get(name, ()) for name in names], scale, radius, RING_STEP * SMOOTHING))
    crosses = list(_marks([predicted.get(name, ()) for name in names], scale, radius, 0.0))
    for ring in rings:
        _ring(draw, ring, line, colours[ring.channel])
    for cross in crosses:
        certainties = np.ravel(scores.get(names[cross.channel], ()))
        score = float(certainties[cross.number]) if len(certainties) else 1.0
        _cross(draw, cross, (0.4 + 0.6 * score) * radius, line, colours[cross.channel])
    if is_numbered(len(names), width):
        size = round(max(10 * SMOOTHING, radius))
        for mark in rings if true else crosses:
            # Numbers at the same place go around it, each in a corner of its own.
            angle, away = math.pi * (mark.before / 2 - 1 / 4), mark.reach + size / 2
            place = mark.x + away * math.cos(angle), mark.y + away * math.sin(angle)
            write_number(draw, mark.channel, place, size)
    smooth = canvas.resize((inner, max(1, canvas.height // SMOOTHING)), Image.Resampling.BOX)
    return fill_width(np.asarray(smooth), width)


def _marks(keypoints: Sequence[np.ndarray | Sequence], scale: float, radius: float, step: float) -> Iterator[Mark]:
    """The keypoints of all channels that are not NaN.

    Args:
        keypoints: For each channel `(K, 2)` xy in pixels of the image.
        scale: Pixels of the canvas per pixel of the image.
        radius: Radius of the first ring at a place, in pixels of the canvas.
        step: By how much the radius of the next ring at that place is larger.
    """
    places = np.empty((0, 2))
    for channel, points in enumerate(keypoints):
        for number, place in enumerate(scale * np.asarray(points, dtype=np.float64).reshape(-1, 2)):
            if np.isfinite(place).all():
                before = int((np.hypot(*(places - place).T) < RING_STEP * SMOOTHING).sum())
                places = np.concatenate([places, place[None]])
                yield Mark(channel, number, *place.tolist(), before, radius + before * step)


def _ring(draw: ImageDraw.ImageDraw, ring: Mark, line: float, colour: tuple[int, ...]) -> None:
    """Draws a ring with a dark rim; line widths are multiples of `line`, in pixels of the canvas."""
    for extra, ink in ((1.0, (0, 0, 0)), (0.0, colour)):
        reach, thick = ring.reach + extra * line, round(line * (1.6 + 2 * extra))
        draw.ellipse((ring.x - reach, ring.y - reach, ring.x + reach, ring.y + reach), outline=ink, width=thick)


def _cross(draw: ImageDraw.ImageDraw, cross: Mark, reach: float, line: float, colour: tuple[int, ...]) -> None:
    """Draws a diagonal cross with a dark rim; `line` as for a ring."""
    x, y = cross.x, cross.y
    for ink, thick, arm in (((0, 0, 0), 3.4, reach + line), (colour, 1.7, reach)):
        for sign in (1, -1):
            draw.line((x - arm, y - sign * arm, x + arm, y + sign * arm), fill=ink, width=round(line * thick))
