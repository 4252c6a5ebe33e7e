"""Reads opened images: their header, and their pixels as upright RGB, whatever the pixel format.

H W image.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from keypoint_detection.errors import InputError

# What Pillow raises for files that are damaged or not images (RuntimeErrors are those of its AVIF decoder). For files
# that it cannot identify, it raises OSErrors.
DECODING_ERRORS = (
    *(SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, AttributeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError, RuntimeError),
)
# How far floating-point pixels may be outside [0, 1], e.g. because resizing rounds.
_ROUNDING = 1e-3
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageHeader(NamedTuple):
    """What the header of an image file says.

    Attributes:
        width: in pixels, after the EXIF rotation.
        height: in pixels, after the EXIF rotation.
        mode: Pillow's name for the pixel format.
        rotated: whether EXIF asks for a rotation or a flip.
        transparent: whether the image has transparency.
    """

    width: int
    height: int
    mode: str
    rotated: bool
    transparent: bool


def decode_header(image: Image.Image) -> ImageHeader:
    """Reads the header of an opened image, without its pixels."""
    orientation = _orientation(image)
    width, height = image.size
    if image.format == "TIFF":  # Some releases of Pillow swap width and height on opening, others do not.
        width, height = image.tag_v2[256], image.tag_v2[257]
    if orientation >= 5:
        width, height = height, width
    return ImageHeader(width, height, image.mode, orientation != 1, _is_transparent(image))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8, from the header alone."""
    try:
        # Not `image.getexif()`, which decodes a whole PNG.
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except (*DECODING_ERRORS, OSError):
        return 1  # A damaged EXIF block is no reason to refuse the pixels.
    return orientation if orientation in _UPRIGHT else 1


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def decode_reduced(
    image: Image.Image, needed: Callable[[tuple[int, int]], tuple[int, int]]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes an opened image like `decode_rgb`, but a large JPEG at a half, a quarter or an eighth of its size.

    This takes a fraction of the time. It is only done if both sides are divisible, so that the reduced image shows
    exactly what the full one does.

    Args:
        image: the opened image.
        needed: maps height and width of the image in pixels to the smallest height and width that will do.

    Returns:
        The pixels, and height and width of the full image after its EXIF rotation.

    Raises:
        InputError: see `decode_rgb`.
    """
    if image.format not in ("JPEG", "MPO"):
        pixels = decode_rgb(image)
        return pixels, (pixels.shape[0], pixels.shape[1])
    header = decode_header(image)
    size = (header.height, header.width)
    wanted = needed(size)
    for divisor in (8, 4, 2):
        if all(side % divisor == 0 and side // divisor >= least for side, least in zip(size, wanted, strict=True)):
            image.draft(None, (image.width // divisor, image.height // divisor))
            break
    return decode_rgb(image), size


def decode_rgb(image: Image.Image) -> np.ndarray:
    """Decodes an opened image to `(H, W, 3)` uint8 RGB, as `images.load_image` describes.

    Raises:
        InputError: if its pixels are outside the range of their format; the message does not name the file.
    """
    orientation = 1 if image.format == "TIFF" else _orientation(image)
    image.load()
    if image.format == "TIFF":  # Some releases of Pillow turn the image upright on loading, others do not.
        orientation = _orientation(image)
    rgb = _to_rgb(image)
    if orientation != 1:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        if "transparency" in image.info:  # the value of all transparent pixels
            pixels = np.where(pixels == image.info["transparency"], 0, pixels)
        return Image.fromarray(to_8_bits(pixels)).convert("RGB")
    if _is_transparent(image):
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), opaque).convert("RGB")
    return image.convert("RGB")


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Scales pixels to uint8: integers from [0, 65535], others from [0, 1], where up to 0.001 beyond is clipped.

    Raises:
        InputError: if pixels are further outside; the message does not name the image.
    """
    whole = np.issubdtype(pixels.dtype, np.integer)
    top, beyond = (65535, 0) if whole else (1, _ROUNDING)
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -beyond and high <= top + beyond):
        raise InputError(f"pixels from {low:g} to {high:g}, expected values from 0 to {top}")
    return np.rint(pixels.astype(np.float32).clip(0, top) * np.float32(255 / top)).astype(np.uint8)


def has_16_bits(header: ImageHeader) -> bool:
    """Whether pixels are integers that are scaled from the 16-bit range to 8 bits."""
    return header.mode.startswith("I;16") or header.mode == "I"


def conversions(header: ImageHeader) -> list[str]:
    """What the loader does to an image with this header, worded to follow "3 images: "; empty for plain RGB."""
    done = []
    if header.mode.startswith("I;16"):
        done.append("16 bits, scaled to 8")
    elif header.mode in ("I", "F"):
        done.append(f"pixels of mode {header.mode}, scaled to 8 bits")
    elif header.mode in ("L", "1", "LA", "La"):
        done.append("grayscale, repeated as RGB")
    elif header.mode not in ("RGB", "RGBA", "RGBX"):
        done.append(f"pixels of mode {header.mode}, converted to RGB")
    if header.transparent:
        done.append("transparent, composited onto black")
    if header.rotated:
        done.append("turned upright according to EXIF; labels refer to the upright image")
    return done
