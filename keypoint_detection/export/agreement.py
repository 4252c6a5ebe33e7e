"""Compares an exported detector with its checkpoint.

C channels, N keypoints, H W image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from keypoint_detection.errors import InputError
from keypoint_detection.files import write_atomic, writing
from keypoint_detection.heatmaps import render
from keypoint_detection.predict import Network
from keypoint_detection.score_thresholds import usable_thresholds
from keypoint_detection.wording import counted

logger = logging.getLogger(__name__)

# See `Network.detect`.
Detect = Callable[[list[np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]

# Height and width in pixels: odd, tiny, very wide, and ones that no stride divides.
SIZES = ((64, 96), (97, 131), (1, 1), (37, 200), (240, 319), (150, 150))
IMAGES_PER_SIZE = 2
# Some peaks are so flat that the last bit of a float32 moves them by hundredths of a pixel. PyTorch itself differs like
# this between machines. At most this share of the keypoints (or one, if that is more) may be off by more than
# `Tolerance.pixels`.
FLAT_SHARE = 0.1
# Peaks above this score are all flat.
SATURATED = 0.999


class Tolerance(NamedTuple):
    """How far an exported detector may be off.

    Attributes:
        pixels: Maximum distance of a keypoint from the checkpoint's, in pixels of the image; a few may exceed it.
        flat_pixels: Maximum distance for these, too.
        score: Maximum difference of the scores. A keypoint may be missing if its score is this close to the threshold,
            or to that of the last keypoint if the maximum number is found.
    """

    pixels: float
    flat_pixels: float
    score: float


FULL = Tolerance(pixels=0.01, flat_pixels=0.1, score=1e-3)
# Half precision rounds weights to 11 bits.
HALF = Tolerance(pixels=0.25, flat_pixels=0.5, score=0.02)
# No keypoint below this score is compared, even if a runtime can return them.
LOWEST_SCORE = 0.05


def write_checked(path: Path, content: bytes, check: Callable[[Path], Any]) -> Path:
    """Writes an exported file if it passes a check; otherwise, an existing file stays as it is.

    Args:
        path: The file.
        content: What to write.
        check: Compares a file with the checkpoint, and returns a report to log. It raises an InputError if they differ.

    Returns:
        The file.

    Raises:
        InputError: If the file cannot be written, or does not pass the check.
    """
    candidate = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        with writing(f"output {path}"):
            write_atomic(candidate, content)
        try:
            report = check(candidate)
        except InputError as error:
            raise InputError(f"{path} was not written: {error}") from error
        with writing(f"output {path}"):
            write_atomic(path, candidate.read_bytes())
    finally:
        candidate.unlink(missing_ok=True)
    logger.info("%s", report)
    return path


class ExportAgreement(NamedTuple):
    """How well two detectors agree.

    Attributes:
        images: Number of images that were compared.
        keypoints: Number of keypoints that were compared.
        pixels: Largest distance, in pixels of the image.
        score: Largest difference between two scores.
    """

    images: int
    keypoints: int
    pixels: float
    score: float

    def __str__(self) -> str:
        checked = f"checked against PyTorch on {counted(self.images, 'image')}"
        if not self.keypoints:
            return f"{checked}, but neither found a keypoint, so this says little"
        return (
            f"{checked}: {counted(self.keypoints, 'keypoint')}, "
            f"at most {self.pixels:.2g} px and {self.score:.2g} of score apart"
        )


def check_images() -> list[np.ndarray]:
    """Random images `(H, W, 3)` uint8 of several sizes: coloured dots on blurred noise."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    images = []
    for height, width in [size for size in SIZES for _ in range(IMAGES_PER_SIZE)]:
        coarse = random(1, 3, -(-height // 8), -(-width // 8))
        image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
        for sigma in (1.5, 3.0, 6.0):
            points = random(3, 4, 2) * torch.tensor([width, height])
            dots = render(points, (height, width), sigma)
            image = image * (1 - dots) + random(3, 1, 1) * dots
        images.append((255 * image).byte().permute(1, 2, 0).contiguous().numpy())
    return images


def check_network(
    expected: Network, found: Detect, caps: list[int], tolerance: Tolerance, lowest: float = 1.0, smallest: int = 1
) -> ExportAgreement:
    """Compares the keypoints of two detectors on random images.

    Args:
        expected: The checkpoint.
        found: The exported detector.
        caps: Maximum number of keypoints of each channel.
        tolerance: How far apart they may be.
        lowest: Compare keypoints from this score on, even if the thresholds of the checkpoint are higher; never below
            `LOWEST_SCORE`.
        smallest: Minimum height and width of images in pixels.

    Returns:
        How far apart they were.

    Raises:
        InputError: If they are farther apart; says where.
    """
    images = [image for image in check_images() if min(image.shape[:2]) >= smallest]
    # On random images, a detector rarely finds anything with a high score, so keypoints below its thresholds are
    # compared, too. Even lower peaks, like those of a detector that has hardly been trained, are so flat that rounding
    # moves them.
    thresholds = usable_thresholds(expected.score_thresholds).clip(max=lowest).clip(min=LOWEST_SCORE)
    pairs: list[_Pair] = []
    for image in images:
        wanted, own = (
            np.concatenate([xy, scores[..., None]], axis=-1)
            for xy, scores in (detect([image])[0] for detect in (expected.detect, found))
        )
        for channel, name in enumerate(expected.channel_names):
            where = f"image of {image.shape[1]}x{image.shape[0]}, channel {name!r}"
            cap, threshold = caps[channel], thresholds[channel]
            pairs += _pair_up(wanted[channel], own[channel], cap, threshold, tolerance, f"{where}, missing")
            _pair_up(own[channel], wanted[channel], cap, threshold, tolerance, f"{where}, unexpected")
    far = [pair for pair in pairs if pair.distance > tolerance.pixels and pair.score <= SATURATED]
    if len(far) > max(1, FLAT_SHARE * len(pairs)):
        raise InputError(
            f"{len(far)} of {counted(len(pairs), 'keypoint')} are more than {tolerance.pixels:g} px away; {max(far)}"
        )
    distances, differences = ([getattr(pair, name) for pair in pairs] for name in ("distance", "difference"))
    return ExportAgreement(len(images), len(pairs), max(distances, default=0.0), max(differences, default=0.0))


class _Pair(NamedTuple):
    """A keypoint, and how far away the other detector's nearest one is, in pixels and in score."""

    distance: float
    difference: float
    score: float
    place: str

    def __str__(self) -> str:
        return (
            f"{self.place} with a score of {self.score:.4f}; the nearest is {self.distance:.3g} px away and "
            f"{self.difference:.2g} of score apart"
        )


def _pair_up(
    rows: np.ndarray, others: np.ndarray, cap: int, threshold: float, tolerance: Tolerance, where: str
) -> list[_Pair]:
    """Finds each keypoint of `rows` in `others`, both `(N, 3)` of x, y, score.

    Keypoints barely above the threshold, or barely above the last one of a full list, are left out.
    """
    least = max(threshold, rows[cap - 1, 2]) + tolerance.score
    found = []
    for x, y, score in rows[rows[:, 2] >= least]:
        distances = np.nan_to_num(np.hypot(others[:, 0] - x, others[:, 1] - y), nan=math.inf)
        nearest = int(distances.argmin())
        place = f"{where}: the keypoint at ({x:.2f}, {y:.2f})"
        pair = _Pair(float(distances[nearest]), float(abs(others[nearest, 2] - score)), float(score), place)
        if pair.distance > tolerance.flat_pixels or pair.difference > tolerance.score:
            raise InputError(f"{pair}, expected at most {tolerance.flat_pixels:g} and {tolerance.score:g}")
        found.append(pair)
    return found
