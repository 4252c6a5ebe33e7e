"""Changes of colour and quality that leave the keypoints where they are.

All functions take and return an image `(3, H, W)` float32 RGB in [0, 1]. The generator that is passed to them is their
only source of randomness. H W image.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow and torchvision
_TO_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])

# Smallest and largest share of an image that `erase` covers.
_ERASED_AREA = (0.02, 0.15)


def adjust_colour(image: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Brightness, contrast, saturation and hue as one affine map of the colours, so in one pass over the image.

    Args:
        image: `(3, H, W)` in [0, 1].
        brightness: factor of all values; 1 changes nothing.
        contrast: factor of the distance to the mean luma of the image; 1 changes nothing.
        saturation: factor of the distance to each pixel's luma; 0 is grayscale, 1 changes nothing.
        hue: rotation of the chroma plane (YIQ) as a fraction of the full turn; 0 changes nothing.

    Returns:
        `(3, H, W)`, clipped to [0, 1].
    """
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1)))
    if hue:
        angle = 2 * math.pi * hue
        rotation = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
        matrix = np.linalg.inv(_TO_YIQ) @ rotation @ _TO_YIQ @ matrix
    offset = 0.0
    if contrast != 1:
        # A sixteenth of the pixels is enough for a mean, and numpy sums it in one thread: the same bits everywhere.
        means = image[:, ::4, ::4].numpy().mean(axis=(1, 2), dtype=np.float64)
        offset = brightness * (1 - contrast) * float(_LUMA @ means)
    red, green, blue = image
    result = torch.empty_like(image)
    for row, channel in zip(matrix.tolist(), result, strict=True):
        torch.mul(red, row[0], out=channel).add_(green, alpha=row[1]).add_(blue, alpha=row[2]).add_(offset)
    return result.clamp_(0, 1)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with `sigma` in pixels."""
    size = min(2 * math.ceil(2 * sigma) + 1, 2 * min(image.shape[1:]) - 1)
    # Rows, then columns: for both at once, torchvision convolves with the full square kernel.
    rows = functional.gaussian_blur(image, [size, 1], [sigma, sigma])
    return functional.gaussian_blur(rows, [1, size], [sigma, sigma])


def add_noise(image: Tensor, deviation: float, random: np.random.Generator) -> Tensor:
    """Adds uniform noise of this standard deviation (1 is the full range) to the brightness, clipped to [0, 1]."""
    # Random bytes are generated several times as fast as normally distributed numbers.
    count = math.prod(image.shape[1:])
    noise = torch.frombuffer(bytearray(random.bytes(count)), dtype=torch.uint8).view(1, *image.shape[1:]).float()
    return torch.add(image, noise.sub_(127.5), alpha=deviation * math.sqrt(12) / 256).clamp_(0, 1)


def compress(image: Tensor, quality: int) -> Tensor:
    """Compresses the image as a JPEG of this quality (1 to 100) and decodes it again."""
    pixels = (image * 255).round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return torch.from_numpy(np.array(decoded)).permute(2, 0, 1).contiguous().float().div_(255)


def erase(image: Tensor, random: np.random.Generator) -> Tensor:
    """Covers a random rectangle with one random colour (random erasing, Zhong et al. 2020).

    Args:
        image: `(3, H, W)` in [0, 1].
        random: where the rectangle and its colour come from.
    """
    height, width = image.shape[1:]
    side = math.sqrt(random.uniform(*_ERASED_AREA))
    stretch = math.exp(random.uniform(-math.log(2), math.log(2)))
    h = max(1, min(height, round(height * side * stretch)))
    w = max(1, min(width, round(width * side / stretch)))
    top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
    colour = torch.from_numpy(random.uniform(size=3).astype(np.float32))[:, None, None]
    return functional.erase(image, top, left, h, w, colour)
