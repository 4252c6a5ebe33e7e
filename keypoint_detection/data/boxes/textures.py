"""Random surfaces for the rendered boxes and the things around them.

A texture is an array `(h, w, 3)` of float32 in [0, 1], the share of light that the surface reflects (linear, not sRGB).
Row 0 is `t = 0` of a face and column 0 is `s = 0`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from keypoint_detection import heatmaps

# Colours of cardboard, in sRGB from 0 to 255; most boxes have roughly one of these, others are white or of any colour.
CARDBOARD = ((196, 154, 108), (181, 137, 92), (208, 172, 130), (166, 124, 82), (214, 186, 150), (176, 142, 108))


def linear(colour: np.ndarray | tuple[int, ...]) -> np.ndarray:
    """Converts sRGB to linear light.

    Args:
        colour: sRGB in [0, 255], any shape.

    Returns:
        float32 in [0, 1].
    """
    return (np.asarray(colour, dtype=np.float32) / 255) ** 2.2


def random_colour(rng: np.random.Generator, saturation: float = 1.0) -> np.ndarray:
    """A random linear colour.

    Args:
        rng: The source of randomness.
        saturation: 0 for gray, 1 for any colour.

    Returns:
        `(3,)` float32.
    """
    colour = rng.uniform(15, 245, 3)
    return linear(colour.mean() + rng.uniform(0, saturation) * (colour - colour.mean()))


def cardboard_colour(rng: np.random.Generator) -> np.ndarray:
    """The linear colour of a box: a brown most of the time, otherwise white or any colour."""
    kind = rng.random()
    if kind < 0.8:
        return linear(np.clip(np.array(CARDBOARD[rng.integers(len(CARDBOARD))]) + rng.normal(0, 8, 3), 0, 255))
    return linear(rng.uniform(205, 245) * np.ones(3)) if kind < 0.9 else random_colour(rng, 0.6)


def fractal_noise(
    rng: np.random.Generator, size: tuple[int, int], exponent: float = 1.0, stretch: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Noise that tiles without a seam, with a spectrum that falls with the frequency.

    Args:
        rng: The source of randomness.
        size: Rows and columns.
        exponent: 0 gives white noise; the larger, the smoother.
        stretch: Factors by which the pattern is stretched along rows and columns.

    Returns:
        float32 array of that size with mean 0 and standard deviation 1, clipped to [-2.5, 2.5].
    """
    spectrum = np.fft.rfft2(rng.standard_normal(size))
    rows = np.fft.fftfreq(size[0])[:, None] * stretch[0]
    columns = np.fft.rfftfreq(size[1])[None, :] * stretch[1]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(spectrum / frequency**exponent, s=size)
    return np.clip(noise / noise.std(), -2.5, 2.5).astype(np.float32)


def sample(texture: np.ndarray, s: np.ndarray, t: np.ndarray, wrap: bool = False) -> np.ndarray:
    """Bilinear values of a texture.

    Args:
        texture: `(h, w, 3)` or `(h, w, 1)`.
        s: `(N,)`, 0 to 1 across the columns.
        t: `(N,)`, 0 to 1 down the rows.
        wrap: Repeat the texture beyond [0, 1]; otherwise its border continues.

    Returns:
        `(N, 3)` or `(N, 1)` float32.
    """
    height, width, channels = texture.shape
    # Pad by one cell on every side, so that the centre of cell i of the texture is at i + 1.
    padded = np.pad(texture, ((1, 1), (1, 1), (0, 0)), mode="wrap" if wrap else "edge")
    if wrap:
        s, t = s - np.floor(s), t - np.floor(t)
    x = np.clip(s, 0, 1).astype(np.float32) * np.float32(width) + heatmaps.HALF_CELL
    y = np.clip(t, 0, 1).astype(np.float32) * np.float32(height) + heatmaps.HALF_CELL
    column = np.minimum(x.astype(np.int32), width)
    row = np.minimum(y.astype(np.int32), height)
    fx, fy = (x - column)[:, None], (y - row)[:, None]
    padded = padded.astype(np.float32, copy=False)
    neighbours = np.concatenate([padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]], axis=2)
    found = np.take(neighbours.reshape(-1, 4 * channels), row * (width + 1) + column, axis=0)
    first, right, below, both = (found[:, i * channels : (i + 1) * channels] for i in range(4))
    top = first + fx * (right - first)
    return top + fy * (below + fx * (both - below) - top)


def cardboard(
    rng: np.random.Generator, colour: np.ndarray, shape: tuple[float, float], tape: float = 0.0, printed: bool = True
) -> np.ndarray:
    """A side of a box: fibres, blotches, worn edges, and sometimes a label, print or tape.

    Args:
        rng: The source of randomness.
        colour: `(3,)` linear.
        shape: Length and height of the side in metres.
        tape: The `t` from which a strip of tape covers the side, up to `t = 1`; 0 for none.
        printed: Whether the side may have print and labels.

    Returns:
        The texture.
    """
    longest = 144 / max(shape)
    width, height = (max(24, round(longest * length)) for length in shape)
    picture = Image.new("RGB", (width, height), tuple(int(c) for c in 255 * colour ** (1 / 2.2)))
    draw = ImageDraw.Draw(picture)
    if printed and rng.random() < 0.45:
        _print(rng, draw, width, height)
    if printed and rng.random() < 0.35:
        _label(rng, draw, width, height)
    texture = linear(np.asarray(picture))
    if tape:
        texture[round(height * tape) :] = 0.55 * texture[round(height * tape) :] + 0.45 * linear(
            rng.choice([(190, 150, 100), (220, 205, 175), (120, 85, 50)])
        )
    stretch = (4.0, 0.5) if rng.random() < 0.5 else (0.5, 4.0)
    texture *= 1 + 0.05 * fractal_noise(rng, (height, width), 1.2)[..., None]
    texture *= 1 + 0.03 * fractal_noise(rng, (height, width), 0.3, stretch)[..., None]
    rim = rng.uniform(1.0, 1.5)
    texture[0], texture[-1], texture[:, 0], texture[:, -1] = (
        rim * edge for edge in (texture[0], texture[-1], texture[:, 0], texture[:, -1])
    )
    return np.clip(texture, 0, 1).astype(np.float32)


def _print(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Prints lines of text and sometimes a logo on a side."""
    ink = tuple(int(c) for c in rng.uniform(10, 110, 3))
    left, top = rng.uniform(0.08, 0.5) * width, rng.uniform(0.1, 0.5) * height
    for line in range(rng.integers(1, 5)):
        x, y = left, top + line * 0.1 * height
        for _ in range(rng.integers(2, 6)):
            word = rng.uniform(0.04, 0.14) * width
            draw.rectangle((x, y, x + word, y + 0.04 * height), fill=ink)
            x += word + 0.02 * width
    if rng.random() < 0.5:
        x, y, radius = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height, rng.uniform(0.06, 0.16) * height
        shape = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(shape, outline=ink, width=3) if rng.random() < 0.5 else draw.regular_polygon(
            (x, y, radius), int(rng.integers(3, 7)), rotation=int(rng.integers(360)), fill=ink
        )


def _label(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Sticks a label with a bar code on a side."""
    w, h = rng.uniform(0.2, 0.5) * width, rng.uniform(0.2, 0.45) * height
    x, y = rng.uniform(0.05, 0.9) * (width - w), rng.uniform(0.05, 0.9) * (height - h)
    paper = tuple(int(c) for c in rng.uniform(200, 250) - rng.uniform(0, 60, 3) * (rng.random() < 0.3))
    draw.rectangle((x, y, x + w, y + h), fill=paper)
    bar = x + 0.1 * w
    while bar < x + 0.85 * w:
        thickness = int(rng.integers(1, 4))
        draw.rectangle((round(bar), y + 0.15 * h, round(bar) + thickness - 1, y + 0.5 * h), fill=(20, 20, 20))
        bar += thickness + rng.integers(1, 3)
    for line in (0.62, 0.78):
        draw.line((x + 0.1 * w, y + line * h, x + rng.uniform(0.4, 0.9) * w, y + line * h), fill=(60, 60, 60))


def surface(rng: np.random.Generator, size: int = 256) -> np.ndarray:
    """A random surface for a floor, a wall or an object; it tiles without a seam.

    Args:
        rng: The source of randomness.
        size: Rows and columns.

    Returns:
        The texture.
    """
    base, other = random_colour(rng, 0.6), random_colour(rng, 0.8)
    kind = rng.choice(["plain", "speckled", "clouds", "planks", "tiles", "polygons", "stripes", "woven"])
    shape = (size, size)
    blend = np.zeros(shape, dtype=np.float32)
    if kind == "speckled":
        blend = np.clip(0.3 * fractal_noise(rng, shape, 0.5), 0, 1)
    elif kind == "clouds":
        blend = np.clip(0.35 * fractal_noise(rng, shape, rng.uniform(1.2, 2)) + 0.48, 0, 1)
    elif kind == "planks":
        blend = _planks(rng, size)
    elif kind == "tiles":
        blend = _tiles(rng, size)
    elif kind == "stripes":
        phase = np.arange(size) / size * 2 * np.pi * rng.integers(2, 12)
        blend = np.broadcast_to(np.clip((1 + rng.uniform(1, 8) * np.sin(phase)) / 2, 0, 1), shape)
    elif kind == "woven":
        phase = np.arange(size) / size * 2 * np.pi * rng.integers(16, 40)
        blend = (2 + np.sin(phase)[:, None] + np.sin(phase)[None, :]) / 4
    texture = base + blend[..., None] * (other - base)
    if kind == "polygons":
        texture = polygons(rng, size, base)
    texture = texture * (1 + rng.uniform(0.01, 0.12) * fractal_noise(rng, shape, 1.0)[..., None])
    return np.clip(texture, 0, 1).astype(np.float32)


def _planks(rng: np.random.Generator, size: int) -> np.ndarray:
    """The share of the second colour in each cell of a floor of wooden planks."""
    count = int(rng.choice([4, 8]))
    width = size // count
    blend = 0.4 + 0.18 * fractal_noise(rng, (size, size), 1.0, (0.3, 8.0))
    blend += np.repeat(rng.uniform(-0.25, 0.25, count), width)[:, None]
    blend[::width] += 0.6
    for plank in range(count):
        blend[plank * width : (plank + 1) * width, rng.integers(size)] += 0.6
    return np.clip(blend, 0, 1)


def _tiles(rng: np.random.Generator, size: int) -> np.ndarray:
    """The share of the second colour in each cell of a tiled floor: in the joints, or in every second tile."""
    count = int(rng.choice([2, 4, 8]))
    width = size // count
    cells = np.arange(size) // width
    if rng.random() < 0.4:
        return ((cells[:, None] + cells[None, :]) % 2).astype(np.float32)
    joint = np.arange(size) % width < max(2, width // 20)
    shade = np.kron(rng.uniform(0, 0.15, (count, count)), np.ones((width, width)))
    return np.where(joint[:, None] | joint[None, :], 1, shade)


def polygons(rng: np.random.Generator, size: int, background: np.ndarray) -> np.ndarray:
    """Random polygons, discs and lines on top of each other.

    Args:
        rng: The source of randomness.
        size: Rows and columns.
        background: `(3,)` linear colour behind them.

    Returns:
        The texture.
    """
    picture = Image.new("RGB", (size, size), tuple(int(c) for c in 255 * background ** (1 / 2.2)))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(5, 40)):
        colour = tuple(int(c) for c in 255 * random_colour(rng) ** (1 / 2.2))
        x, y = rng.uniform(0, size, 2)
        radius = size * rng.uniform(0.02, 0.2)
        kind = rng.random()
        if kind < 0.6:
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
            points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
            draw.polygon([tuple(point) for point in points], fill=colour)
        elif kind < 0.8:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        else:
            draw.line((x, y, *rng.uniform(0, size, 2)), fill=colour, width=int(rng.integers(1, 6)))
    return linear(np.asarray(picture))
