"""Crops of training images: if objects are small, the network would learn nothing from most of an image.

C channels, K keypoints, H W image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Share of the crops that lie anywhere, so that the network also sees the background; all others contain a keypoint.
_ANYWHERE = 0.25
# The keypoint is no nearer to the border of the crop than this fraction of its side, unless the image ends there.
_MARGIN = 0.1
# A label outside by at most this fraction of the image's side was on its border until division or 32 bits rounded it.
_ROUNDING = 1e-6


class Window(NamedTuple):
    """A part of an image.

    Attributes:
        left: Its first column.
        top: Its first row.
        size: Its height and width in pixels.
    """

    left: int
    top: int
    size: tuple[int, int]

    def take(self, pixels: Tensor) -> Tensor:
        """The part `(..., h, w)` of pixels `(..., H, W)`."""
        return pixels[..., self.top : self.top + self.size[0], self.left : self.left + self.size[1]]


def choose_window(
    keypoints: Tensor, size: tuple[int, int], crop_size: tuple[int, int], random: np.random.Generator
) -> Window:
    """Draws a random crop of an image: three in four are placed around a keypoint of the image, if it has any.

    Args:
        keypoints: `(C, K, 2)` xy in pixels of the image, NaN for none.
        size: `(H, W)` of the image in pixels.
        crop_size: Height and width of the crop, which is smaller if the image is.
        random: The source of randomness.

    Returns:
        A crop that lies within the image.
    """
    height, width = min(size[0], crop_size[0]), min(size[1], crop_size[1])
    room = np.array([size[1] - width, size[0] - height])
    place, chance, pick = random.uniform(size=2), random.uniform(), random.uniform()
    corner = place * room
    xy = keypoints.numpy().reshape(-1, 2)
    inside = xy[((xy >= 0) & (xy <= (size[1], size[0]))).all(axis=1)]  # NaN is not
    if len(inside) and chance >= _ANYWHERE:
        keypoint = inside[int(pick * len(inside))]
        corner = keypoint - (_MARGIN + (1 - 2 * _MARGIN) * place) * (width, height)
    left, top = np.clip(np.rint(corner), 0, room).astype(int).tolist()
    return Window(left, top, (height, width))


def keep_inside(xy: np.ndarray, limits: np.ndarray | tuple[int, int]) -> np.ndarray:
    """The labels that are inside their image; one that is outside by a rounding error is moved onto the border.

    Args:
        xy: `(..., 2)` float32.
        limits: width and height of the image, in the unit of the labels and in a shape that broadcasts.

    Returns:
        `(..., 2)` float32, NaN for a label outside.
    """
    limits = np.asarray(limits, xy.dtype)
    inside = np.clip(xy, 0, limits)
    inside[(np.abs(xy - inside) > _ROUNDING * limits).any(-1)] = np.nan
    return inside


def within(keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """The keypoints `(C, K, 2)`, with NaN for those outside an image of `size` (H, W), judged like labels."""
    return torch.from_numpy(keep_inside(keypoints.numpy(), (size[1], size[0])))
