"""Random changes of a training image: one homography and one chain of photometric changes.

Mixing with another image is left to the data set, which has both. H W image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from torch import Tensor

from keypoint_detection.data import photometric
from keypoint_detection.data.geometry import FILLS, scaling, translation
from keypoint_detection.errors import InputError

# The largest values allowed; all others are probabilities and shares, which are at most 1.
_HIGHEST = {
    "rotation": 180, "scale": 10, "shear": 44, "perspective": 0.99, "brightness": 0.99, "contrast": 0.99, "hue": 0.5,
}  # fmt: skip


class Geometry(NamedTuple):
    """A random change of geometry.

    Attributes:
        homography: `(3, 3)` float64, from pixels of the unchanged image to pixels of the changed one.
        mirrored: whether left and right have changed places.
    """

    homography: np.ndarray
    mirrored: bool


@dataclass(kw_only=True, eq=False)
class Augmentation:
    """Random changes of the training images.

    Geometric changes are combined into one homography, with which the keypoints are moved and the image is sampled
    once. A value of 0 turns a change off. Colour changes let a detector cope with different lighting, at no cost if the
    lighting stays the same. Blur and noise help if future images have them, and cost accuracy if not. Shear,
    perspective, hue and erasing held back runs of a few minutes. All of these are therefore off by default; they may
    pay off in hours of training on rendered images for a camera whose images look different. Pasting parts of other
    images (`cutmix`) helped on one data set of three, and cost accuracy if each image was seen only some 50 times
    (benchmarks/README.md).

    Args:
        rotation: largest rotation in either direction, in degrees (0 to 180).
        horizontal_flip: probability of mirroring left and right.
        vertical_flip: probability of mirroring top and bottom.
        scale: maximum change of size, as a fraction: 0.25 scales by a factor between 1 / 1.25 and 1.25.
        shear: maximum shear along either axis, in degrees (at most 44: 45 along both axes would make the image flat).
        translation: maximum shift along either axis, as a fraction of the image's side.
        perspective: maximum change of scale along an axis, from one side of the image to the other, as a fraction (at
            most 0.99); at 0.5, one side is up to 1.3 times as long as the opposite one.
        crop: probability of enlarging a random part, at least half as wide and high as the image, to the full image.
        flip_pairs: channels that swap places in a mirrored image, as "eyeL=eyeR a=b" or a list of such pairs; "auto"
            guesses them from the names, "none" means that there are none.
        fill: what a warped image shows where it has no pixels: its mean colour ("mean"), black ("zeros"), the nearest
            pixel ("border") or its mirror image ("reflection").
        brightness: maximum change of brightness, as a fraction.
        contrast: maximum change of contrast, as a fraction.
        saturation: maximum change of saturation, as a fraction.
        hue: maximum rotation of the hue in either direction, as a fraction of the colour circle (0 to 0.5).
        grayscale: probability of converting to grayscale.
        blur: probability of a Gaussian blur of up to 2 pixels.
        noise: maximum standard deviation of noise in the brightness, as a fraction of white.
        jpeg: probability of JPEG compression with a quality of 25 to 95.
        erasing: probability of covering a random rectangle of 2 to 15 % of the image.
        cutmix: probability of replacing a random rectangle of 15 to 50 % of the image with the same part of another
            one, with its keypoints.
    """

    rotation: float
    horizontal_flip: float
    vertical_flip: float
    scale: float = 0.25
    shear: float = 0.0
    translation: float = 0.1
    perspective: float = 0.0
    crop: float = 0.0
    flip_pairs: list[str] | str = "auto"
    fill: str = "mean"
    brightness: float = 0.4
    contrast: float = 0.5
    saturation: float = 0.6
    hue: float = 0.0
    grayscale: float = 0.1
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0
    erasing: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in [field.name for field in fields(self) if field.name not in ("flip_pairs", "fill")]:
            value, highest = getattr(self, name), _HIGHEST.get(name, 1)
            if not 0 <= value <= highest:
                raise InputError(f"{name}: expected a number from 0 to {highest}, got {value}")
        if self.fill not in FILLS:
            raise InputError(f"fill: expected one of {', '.join(FILLS)}, got {self.fill!r}")

    @property
    def mirrors(self) -> bool:
        """Whether images may be mirrored."""
        return self.horizontal_flip > 0 or self.vertical_flip > 0

    @property
    def largest_zoom(self) -> float:
        """The most by which the middle of an image is enlarged, along the direction that grows most."""
        return (1 + self.scale) * (1 + math.tan(math.radians(self.shear))) * (2 if self.crop else 1)

    def geometry(self, random: np.random.Generator, size: tuple[int, int], may_mirror: bool = True) -> Geometry:
        """Draws one homography.

        Args:
            random: the source of randomness.
            size: `(H, W)` of the image in pixels; the changed image has the same size.
            may_mirror: False turns both flips off.
        """
        height, width = size
        symmetric = random.uniform(-1, 1, size=8)
        flips = random.uniform(size=2) < (self.horizontal_flip, self.vertical_flip)
        horizontal, vertical = bool(flips[0]) and may_mirror, bool(flips[1]) and may_mirror
        homography = self._crop(random, size)
        if horizontal:
            homography = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ homography
        if vertical:
            homography = np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]]) @ homography
        linear = self._about_centre(symmetric, size)
        if not np.array_equal(linear, np.eye(3)):
            centre = translation(width / 2, height / 2)
            shift = translation(*(self.translation * symmetric[:2] * (width, height)))
            homography = shift @ centre @ linear @ np.linalg.inv(centre) @ homography
        elif self.translation:
            homography = translation(*(self.translation * symmetric[:2] * (width, height))) @ homography
        return Geometry(homography, horizontal != vertical)

    def photometric(self, image: Tensor, random: np.random.Generator) -> Tensor:
        """Changes colours and quality of an image `(3, H, W)` float32 in [0, 1]; keypoints stay where they are."""
        chances = random.uniform(size=4) < (self.grayscale, self.blur, self.jpeg, self.erasing)
        grayscale, blur, jpeg, erasing = chances.tolist()
        strengths = random.uniform(-1, 1, size=5)
        if erasing:
            image = photometric.erase(image, random)
        if grayscale or self.brightness or self.contrast or self.saturation or self.hue:
            brightness, contrast, saturation = 1 + strengths[:3] * (self.brightness, self.contrast, self.saturation)
            image = photometric.adjust_colour(
                image, brightness, contrast, 0.0 if grayscale else saturation, strengths[3] * self.hue
            )
        if blur:
            image = photometric.blur(image, random.uniform(0.3, 2))
        if self.noise:
            image = photometric.add_noise(image, abs(strengths[4]) * self.noise, random)
        if jpeg:
            image = photometric.compress(image, int(random.integers(25, 96)))
        return image

    def _crop(self, random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """Enlarges a random window of the image to the whole image, or does nothing."""
        chance, share, x, y = random.uniform(size=4)
        if chance >= self.crop:
            return np.eye(3)
        share = 1 - share / 2
        window = (size[0] * share, size[1] * share)
        return scaling(window, size) @ translation(-x * (size[1] - window[1]), -y * (size[0] - window[0]))

    def _about_centre(self, symmetric: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Perspective, then shear, scale and rotation about the origin; `symmetric` holds numbers in [-1, 1]."""
        angle = math.radians(self.rotation) * symmetric[2]
        factor = math.exp(math.log1p(self.scale) * symmetric[3])
        shear_x, shear_y = np.tan(math.radians(self.shear) * symmetric[4:6])
        tilt_x, tilt_y = self.perspective * symmetric[6:8] / (2 * size[1], 2 * size[0])
        cosine, sine = factor * math.cos(angle), factor * math.sin(angle)
        similarity = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
        sheared = np.array([[1.0, shear_x, 0], [shear_y, 1.0, 0], [0, 0, 1.0]])
        return similarity @ sheared @ np.array([[1.0, 0, 0], [0, 1.0, 0], [tilt_x, tilt_y, 1.0]])
