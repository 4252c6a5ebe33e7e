"""Converts the images that users pass (paths, PIL images, arrays and tensors) to upright RGB.

H W image.
"""

from __future__ import annotations

from os import PathLike

import numpy as np
import torch
from PIL import Image

from keypoint_detection.data.decoding import DECODING_ERRORS, decode_rgb, to_8_bits
from keypoint_detection.data.images import load_image
from keypoint_detection.errors import InputError

ImageInput = str | PathLike[str] | Image.Image | np.ndarray | torch.Tensor


def to_rgb(image: ImageInput) -> np.ndarray:
    """Converts an image of any common type to `(H, W, 3)` uint8 RGB.

    Args:
        image: A path or a PIL image, which are turned upright according to EXIF; a numpy array `(H, W)` or `(H, W, C)`;
            or a torch tensor `(H, W)` or `(C, H, W)`, with 1, 3 or 4 channels. Arrays and tensors are uint8, uint16
            over its whole range, bool, or floating-point in [0, 1]. Transparent images are composited onto black.

    Returns:
        `(H, W, 3)` uint8.

    Raises:
        InputError: If it is none of these; the message says what it is.
    """
    if isinstance(image, (str, PathLike)):
        return load_image(image)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise InputError(f"PIL image of {image.width}x{image.height} pixels: expected at least one")
        try:
            return decode_rgb(image)
        except (*DECODING_ERRORS, OSError) as error:
            raise InputError(f"PIL image of mode {image.mode} cannot be converted to RGB: {error}") from error
    if isinstance(image, torch.Tensor):
        pixels = _tensor_to_array(image)
        channels_last = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
        expected = "expected (H, W), or (C, H, W) with 1, 3 or 4 channels, of at least one pixel"
        return _array_to_rgb(channels_last, f"tensor of shape {tuple(image.shape)}, {expected}")
    if isinstance(image, np.ndarray):
        expected = "expected (H, W), or (H, W, C) with 1, 3 or 4 channels, of at least one pixel"
        return _array_to_rgb(image, f"array of shape {image.shape}, {expected}")
    raise InputError(f"image of type {type(image).__name__}: expected a path, a PIL image, an array or a tensor")


def _tensor_to_array(image: torch.Tensor) -> np.ndarray:
    try:
        pixels = image.detach().cpu()
        is_short = pixels.is_floating_point() and pixels.dtype not in (torch.float32, torch.float64)
        return (pixels.float() if is_short else pixels).numpy()
    except (RuntimeError, TypeError) as error:  # e.g. sparse tensors, and tensors without data
        kind = f"{str(image.dtype).removeprefix('torch.')} in layout {image.layout} on device {image.device}"
        raise InputError(f"tensor of {kind}: expected dense pixels that numpy can read") from error


def _array_to_rgb(pixels: np.ndarray, described: str) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(described)
    pixels = _to_bytes(pixels)
    if pixels.shape[2] == 4:
        return np.rint(pixels[..., :3] * (pixels[..., 3:] / 255)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.newbyteorder("=") == np.uint16 or np.issubdtype(pixels.dtype, np.floating):
        return to_8_bits(pixels)
    raise InputError(f"image of {pixels.dtype}: expected uint8, uint16, bool or floating-point values in [0, 1]")
