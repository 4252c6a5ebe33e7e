"""Composes pictures: colours of channels, grids with captions, legends. Does not know about tensors.

Pictures are `(H, W, 3)` uint8 RGB arrays.
"""

from __future__ import annotations

import colorsys
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Based on Okabe and Ito's colours, which colour-blind readers can tell apart; more channels get evenly spaced hues.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 200, 130), (230, 120, 190), (0, 114, 230), (213, 60, 0), (240, 228, 66))
# How bright red, green and blue look, and the maximum brightness of a thin line on white paper, out of 255.
BRIGHTNESS = (0.299, 0.587, 0.114)
PAPER_BRIGHTNESS = 150.0
BACKGROUND = (24, 24, 28)
INK = (235, 235, 235)
GAP = 4  # pixels between the pictures of a grid
# Pictures below this width in pixels have no room for numbers, nor for large print and an explanation of the marks.
NARROW = 256
# Maximum ratio of a picture's height to its width; the sides of taller images are left empty.
TALLEST = 3
# The hues of this many channels are hard to tell apart, so colours are accompanied by numbers.
MANY_CHANNELS = 11


def channel_colours(count: int) -> np.ndarray:
    """Distinct colours for channels.

    Args:
        count: Number of channels.

    Returns:
        `(count, 3)` uint8.
    """
    if count <= len(COLOURS):
        return np.array(COLOURS[:count], dtype=np.uint8).reshape(-1, 3)
    shades = ((0.62, 1.0), (0.5, 0.75), (0.78, 0.6))
    colours = np.array([colorsys.hls_to_rgb(i / count, *shades[i % len(shades)]) for i in range(count)])
    # Successive channels are about three eighths of the colour circle apart, since they are often seen side by side.
    step = next(step for step in range(3 * count // 8, count) if math.gcd(step, count) == 1)
    return np.rint(255 * colours[step * np.arange(count) % count]).astype(np.uint8)


def paper_colours(count: int) -> np.ndarray:
    """The colours of channels on white paper: the same hues, darkened where they are too light.

    Args:
        count: Number of channels.

    Returns:
        `(count, 3)` uint8.
    """
    colours = channel_colours(count).astype(np.float64)
    brightness = colours @ BRIGHTNESS
    darker = np.minimum(1, PAPER_BRIGHTNESS / np.maximum(brightness, 1))
    return np.rint(colours * darker[:, None]).astype(np.uint8)


def resize(picture: np.ndarray, width: int) -> np.ndarray:
    """Scales a picture to a width, keeping its aspect ratio.

    Args:
        picture: `(H, W, 3)` uint8.
        width: In pixels.

    Returns:
        The scaled picture.
    """
    if picture.shape[1] == width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    method = Image.Resampling.BOX if width % picture.shape[1] == 0 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((width, height), method))


def width_within(width: int, size: Sequence[int]) -> int:
    """The width in pixels of an image inside a picture: all of it, unless that would make the picture very tall.

    Args:
        width: Width of the picture.
        size: Height and width of the image.
    """
    return max(1, min(width, TALLEST * width * size[1] // size[0]))


def fill_width(picture: np.ndarray, width: int) -> np.ndarray:
    """Centres a picture in one of the given width, which is at least its own."""
    if picture.shape[1] == width:
        return picture
    left = (width - picture.shape[1]) // 2
    canvas = np.empty((picture.shape[0], width, 3), dtype=np.uint8)
    canvas[:] = BACKGROUND
    canvas[:, left : left + picture.shape[1]] = picture
    return canvas


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font with Latin, Greek and Cyrillic letters; the one that comes with Pillow lacks some."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)  # Pillow 10.1 does not accept a Path


@contextmanager
def boxes_for_letters() -> Iterator[None]:
    """Lets matplotlib, like Pillow, draw a box for a letter that its font lacks, without a warning each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Shortens a text in the middle until it fits on one line of a width in pixels."""
    text = re.sub(r"\s", " ", text)  # Pillow cannot measure text of several lines
    kept = len(text)
    shortened = text
    while font.getlength(shortened) > width and kept > 2:
        kept -= 1
        shortened = text[: math.ceil(kept / 2)] + "…" + text[len(text) - kept // 2 :]
    return shortened


def image_grid(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str] = ()) -> np.ndarray:
    """Puts pictures into a grid with captions above the columns.

    Args:
        rows: Pictures, row by row; they may differ in size.
        captions: One per column, or none.

    Returns:
        The picture.
    """
    columns = max(len(row) for row in rows)
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    font = _font(max(10, min(18, min(widths) // 9)))
    top = round(font.size * 1.7) if captions else GAP
    canvas = Image.new("RGB", (sum(widths) + GAP * (columns + 1), sum(heights) + GAP * len(rows) + top), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    lefts = np.cumsum([GAP, *(width + GAP for width in widths)]).tolist()
    for caption, left, width in zip(captions, lefts, widths, strict=False):
        text = _fit(caption, font, width - font.size)
        draw.text((left + (width - font.getlength(text)) / 2, top / 2), text, fill=INK, font=font, anchor="lm")
    for row, height in zip(rows, heights, strict=True):
        for picture, left in zip(row, lefts, strict=False):
            canvas.paste(Image.fromarray(picture), (left, top))
        top += height + GAP
    return np.asarray(canvas)


def named_grid(pictures: Sequence[np.ndarray], names: Sequence[str], columns: int) -> np.ndarray:
    """Puts pictures into a grid, row by row, with a name above each.

    Args:
        pictures: Pictures of one width.
        names: One per picture; shortened in the middle if they are longer than the picture is wide.
        columns: Number of pictures in a row.

    Returns:
        The picture.
    """
    starts = range(0, len(pictures), columns)
    return stack([image_grid([pictures[i : i + columns]], names[i : i + columns]) for i in starts])


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks pictures from top to bottom.

    Args:
        pictures: At least one; narrower ones are padded on the right.

    Returns:
        The picture.
    """
    canvas = Image.new("RGB", (max(p.shape[1] for p in pictures), sum(p.shape[0] for p in pictures)), BACKGROUND)
    top = 0
    for picture in pictures:
        canvas.paste(Image.fromarray(picture), (0, top))
        top += picture.shape[0]
    return np.asarray(canvas)


def add_legend(picture: np.ndarray, entries: Mapping[str, str], marks: str) -> np.ndarray:
    """Adds a legend below a picture: how keypoints are marked, and the channels with their colours.

    Many channels are numbered, as in the picture. Below a narrow picture, there are only the channels.

    Args:
        picture: `(H, W, 3)` uint8.
        entries: The text after the name of each channel.
        marks: Explains the marks in the picture and the texts after the names; lines may break at its commas.

    Returns:
        The picture with the legend, taller than before.
    """
    width = picture.shape[1]
    font = _font(max(9 if width < NARROW else 11, min(20, width // 45), width // 75))
    height = round(font.size * 1.6)
    places, x, y = [], height / 2, height / 2
    parts = marks.split(", ") if width >= NARROW else []
    explained = [_fit(part, font, width - height) for part in parts]
    numbered = is_numbered(len(entries), width)
    names = [f"{i} {name}" if numbered else name for i, name in enumerate(entries, start=1)]
    texts = [f"{name} {text}".strip() for name, text in zip(names, entries.values(), strict=True)]
    for i, text in enumerate([*explained, *(_fit(text, font, width - 3 * height) for text in texts)]):
        needed = font.getlength(text) + (0.9 if i < len(explained) else 1.6) * height
        if x + needed > width and x > height:
            x, y = height / 2, y + height
        places.append((x, y, text))
        x += needed
    strip = Image.new("RGB", (width, 2 * round((y + height * 1.5) / 2)), BACKGROUND)  # even, as videos require
    draw = ImageDraw.Draw(strip)
    colours = [*[INK] * len(explained), *map(tuple, channel_colours(len(entries)).tolist())]
    for (x, y, text), colour in zip(places, colours, strict=True):
        middle = y + height / 2
        if colour is not INK:
            draw.ellipse((x, middle - height / 4, x + height / 2, middle + height / 4), fill=colour)
        indent = 0 if colour is INK else 0.7 * height
        draw.text((x + indent, middle), text, fill=INK, font=font, anchor="lm")
    return np.concatenate([picture, np.asarray(strip)])


def is_numbered(channels: int, width: int) -> bool:
    """Whether channels are numbered in a picture of this width in pixels and in its legend."""
    return channels >= MANY_CHANNELS and width >= NARROW


def write_number(draw: ImageDraw.ImageDraw, channel: int, place: tuple[float, float], size: int) -> None:
    """Writes the number of a channel, counted from 1 as in legends, centred at a place or inside the picture beside it.

    Args:
        draw: What to draw on.
        channel: Index of the channel.
        place: x and y in pixels.
        size: Font size in pixels.
    """
    style = {"font": _font(size), "anchor": "mm", "stroke_width": max(1, size // 8)}
    text = str(channel + 1)
    left, top, right, bottom = draw.textbbox((0, 0), text, **style)
    width, height = draw.im.size
    inside = max(min(place[0], width - right), -left), max(min(place[1], height - bottom), -top)
    draw.text(inside, text, fill=INK, stroke_fill=(0, 0, 0), **style)


def add_title(picture: np.ndarray, text: str) -> np.ndarray:
    """Writes a word into the upper left corner of a picture.

    Args:
        picture: `(H, W, 3)` uint8.
        text: The word.

    Returns:
        The picture with the word.
    """
    canvas = Image.fromarray(picture)
    font = _font(max(10, min(16, picture.shape[1] // 10)))
    ImageDraw.Draw(canvas).text((4, 2), text, fill=INK, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    return np.asarray(canvas)
