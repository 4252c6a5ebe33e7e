"""What `auto` means: choices based on the data and the device, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.flips import mirror_permutation, sides_without_partner
from keypoint_detection.data.orientation import measure_orientation
from keypoint_detection.errors import InputError
from keypoint_detection.train.choices import Choices
from keypoint_detection.train.image_sizes import (
    choose_crop,
    choose_size,
    choose_stride,
    extents,
    flatness,
    keypoint_gap,
)
from keypoint_detection.wording import counted

Auto = Literal["auto"]

# Sigma as a fraction of the longer side (see `flatness`), and its minimum in cells, so that no peak falls between them.
SIGMA_FRACTION = 0.015
SMALLEST_SIGMA_CELLS = 0.8
# Two Gaussians this many sigmas apart still have two peaks.
SIGMAS_PER_GAP = 3.0
FEWEST_AUGMENTED = 10
# Batch sizes on a CPU, and the pixels that make a batch worth a step: batches of small images have more of them, since
# a step hardly takes longer with them (benchmarks/README.md).
CPU_BATCHES = (4, 8, 16)
FEWEST_PIXELS = 130_000
GPU_BATCHES = (16, 8, 4, 2, 1)
# Agreement of directions, in [0, 1], from which objects count as having an upright direction, or an axis.
SAME_WAY = 0.6
SAME_AXIS = 0.5
# The same for senses of rotation, from which mirrored images would show objects that do not exist.
SAME_HAND = 0.8
# If adding a mirrored copy of each image leaves at most this share of either agreement, mirrored labels would be wrong.
LEFT_IN_MIRRORS = 0.8
# Degrees of rotation if the labels indicate nothing, and if they never turn.
UNKNOWN_ROTATION = 30.0
SMALLEST_ROTATION = 15.0
# Share of the training in which images are augmented if the labels hardly turn. Training then ends on images like those
# that the detector will be used on, and keypoints are located more exactly (benchmarks/README.md).
AUGMENTED_SHARE = 0.7
# Share of the training in which images grow, see `Curriculum`.
GROWING_SHARE = 0.6
# If the initial weights know at least this share of the channels, small images and the full learning rate would undo
# what they know. Images then do not grow, and the learning rate has this factor (benchmarks/README.md).
KNOWN_SHARE = 0.5
KNOWN_RATE = 1 / 3


@dataclass(frozen=True)
class Device:
    """The device to train on.

    Attributes:
        kind: `cpu` or `gpu`.
        fast_bf16: Whether it is sure to be faster with bf16.
        fitting: How many images fit into its memory, given stride, height and width; None for no limit.
    """

    kind: str
    fast_bf16: bool = False
    fitting: Callable[[int, int, int], float] | None = None


@dataclass
class Recipe:
    """The values that a training run uses.

    Attributes:
        image_size: `[height, width]` in pixels that images are letterboxed into, or None for their own sizes.
        train_crop_size: `[height, width]` of training crops in pixels of the network's input, or None for whole images.
        heatmap_stride: Pixels of the network's input per cell of a heatmap.
        heatmap_sigma: Standard deviation of the Gaussians in pixels of the network's input.
        batch_size: Images per step and process.
        learning_rate: Highest learning rate.
        precision: Lightning's name of the number format.
        rotation: Largest rotation of training images in degrees.
        horizontal_flip: Probability of mirroring left and right.
        vertical_flip: Probability of mirroring top and bottom.
        augmented_share: Share of the training in which images are augmented at random.
        progressive_resizing: Share of the training in which images grow.
        augment_train: Whether training images are augmented at random.
        reasons: Why `auto` chose what it chose, by flag name.
    """

    image_size: list[int] | None
    train_crop_size: list[int] | None
    heatmap_stride: int
    heatmap_sigma: float
    batch_size: int
    learning_rate: float
    precision: str
    rotation: float
    horizontal_flip: float
    vertical_flip: float
    augmented_share: float
    progressive_resizing: float
    augment_train: bool
    reasons: dict[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The hyperparameters by name, without the reasons."""
        values = asdict(self)
        del values["reasons"]
        return values


def choose_recipe(
    annotations: Annotations,
    sizes: np.ndarray,
    device: Device,
    flip_pairs: str | Sequence[str],
    trained_channels: Sequence[str] = (),
    by_heart: bool = False,
    image_size: str | int | list[int] | None = "auto",
    train_crop_size: str | int | list[int] | None = "auto",
    heatmap_stride: Literal[1, 2, 4] | Auto = "auto",
    heatmap_sigma: float | Auto = "auto",
    batch_size: int | Auto = "auto",
    learning_rate: float | Auto = "auto",
    precision: str = "auto",
    rotation: float | Auto = "auto",
    horizontal_flip: float | Auto = "auto",
    vertical_flip: float | Auto = "auto",
    augmented_share: float | Auto = "auto",
    progressive_resizing: float | Auto = "auto",
    augment_train: bool | Auto = "auto",
) -> Recipe:
    """Replaces `auto` by values that suit the data and the device, and logs each with its reason.

    Args:
        annotations: The training images.
        sizes: `(N, 2)` int width and height of their files; 0 if the header was not read.
        device: The device to train on.
        flip_pairs: Channels that swap in a mirrored image, see `Augmentation`.
        trained_channels: Names of the channels that the initial weights have learnt.
        by_heart: Whether all training images are also validation images.
        image_size: Size in pixels to fit images into: 256, or "256 320" (height width). Their aspect ratio is
            kept; none keeps every image at its own size.
        train_crop_size: Size of training crops, in pixels of the network's input. Larger training images are shown one
            crop at a time, most of them with a keypoint. auto uses crops if objects are small: if their keypoints lie
            in a small part of the image, or if a channel has ten or more keypoints in varying numbers. If there are
            fewer, a number is worth trying, together with a larger image_size. none shows whole images.
        heatmap_stride: Pixels of the network's input per cell of the heatmaps, 1, 2 or 4.
        heatmap_sigma: Standard deviation of the Gaussians at keypoints, in pixels of the network's input.
        batch_size: Images per step and process. auto is at most 16: on a GPU, as many of these as are sure to fit into
            half of its memory in 32 bits; on a CPU, fewer if images are larger.
        learning_rate: Highest learning rate. auto is a third of the usual one for weights that know half the channels.
        precision: Number format of the network: 32, bf16-mixed or 16-mixed. Loss, heatmaps and metrics stay in
            32 bits. auto is bf16-mixed on NVIDIA GPUs from Ampere on, and 32 on other devices.
        rotation: Maximum rotation of training images in either direction, in degrees (0 to 180). auto depends on how
            much the directions in the labels vary.
        horizontal_flip: Probability of flipping training images left to right. auto depends on the labels.
        vertical_flip: Probability of flipping training images top to bottom. auto depends on the labels.
        augmented_share: Share of the training, in [0, 1], during which images are augmented at random; after that, they
            are shown unchanged. auto is 0.7 if the directions in the labels hardly vary, otherwise 1.
        progressive_resizing: Share of the training, in [0, 1], during which the images grow from half their size to
            full size, but are never smaller than 128 px. auto is 0.6, or 0 (full size throughout) when fine-tuning from
            weights that know at least half of the channels.
        augment_train: Augment training images at random. auto does so unless there are fewer than 10 and all of them
            are validation images too: such a run checks that the network can learn them by heart.

    Returns:
        The values.

    Raises:
        InputError: If a size cannot be parsed, sigma is larger than the images, or the pairs do not fit the channels.
    """
    choices = Choices()
    goes_on, start = _start(annotations.channel_names, trained_channels)
    turns = _turns(annotations, sizes, flip_pairs)
    by_heart = by_heart and len(annotations) < FEWEST_AUGMENTED
    reason = f"for {counted(len(annotations), 'image')}" + (", all of them validation images too" if by_heart else "")
    augmented = choices.choose("augment_train", augment_train, not by_heart, reason)
    # Without augmentation, its settings are not worth logging.
    change = partial(choices.choose, is_news=augmented)
    across = extents(annotations, sizes)
    in_parts = train_crop_size not in (None, "none")
    size, longer, shorter = choose_size(choices, image_size, sizes, across if in_parts else across[:0], device.kind)
    crop, longer, shorter = choose_crop(choices, train_crop_size, longer, shorter, across, device.kind)
    gap = keypoint_gap(annotations, sizes, tuple(size) if size else None)
    near = f", and neighbours of one channel are {gap:.1f} px apart" if math.isfinite(gap) else ""
    reason = f"the shorter side of the {'crops' if crop else 'images'} is then {shorter} px{near}"
    stride = choices.choose("heatmap_stride", heatmap_stride, choose_stride(shorter, gap), reason)
    side = round(longer / flatness(np.array([[longer, shorter]])))
    sigma = round(max(min(SIGMA_FRACTION * side, gap / SIGMAS_PER_GAP), SMALLEST_SIGMA_CELLS * stride), 2)
    reason = f"for a side of {side} px and cells of {stride} px{near}"
    sigma = choices.choose("heatmap_sigma", heatmap_sigma, sigma, reason)
    if heatmap_sigma != "auto" and sigma > longer:
        raise InputError(
            f"--heatmap_sigma {sigma:g}: expected at most {longer}, the longer side of the network's input in pixels"
        )
    most = device.fitting(stride, shorter, longer) if device.fitting and batch_size == "auto" else math.inf
    batch = choices.choose("batch_size", batch_size, *_batch_size(device.kind, shorter, longer, most))
    rate = 6e-3 * min(1.0, math.sqrt(batch / 4))
    rate = round(rate * KNOWN_RATE if goes_on else rate, 5)
    growing = 0.0 if goes_on else GROWING_SHARE
    return Recipe(
        image_size=size,
        train_crop_size=crop,
        heatmap_stride=stride,
        heatmap_sigma=sigma,
        batch_size=batch,
        learning_rate=choices.choose("learning_rate", learning_rate, rate, f"for batches of {batch}, {start}"),
        precision=choices.choose("precision", precision, *_precision(device)),
        rotation=change("rotation", rotation, turns.rotation, turns.reason),
        horizontal_flip=change("horizontal_flip", horizontal_flip, turns.horizontal_flip, turns.reason + turns.across),
        vertical_flip=change("vertical_flip", vertical_flip, turns.vertical_flip, turns.reason + turns.upside_down),
        augmented_share=change("augmented_share", augmented_share, turns.share, turns.reason),
        progressive_resizing=choices.choose("progressive_resizing", progressive_resizing, growing, start),
        augment_train=augmented,
        reasons=choices.reasons,
    )


def _batch_size(kind: str, shorter: int, longer: int, most: float) -> tuple[int, str]:
    """The batch size for images of this size, and why."""
    if kind != "cpu":
        batch = next((size for size in GPU_BATCHES if size <= most), GPU_BATCHES[-1])
        fewer = f", with memory for {int(most)} images of {shorter}x{longer} px" if batch < GPU_BATCHES[0] else ""
        return batch, f"the device is {kind}{fewer}"
    enough = (size for size in CPU_BATCHES if size * shorter * longer >= FEWEST_PIXELS)
    return next(enough, CPU_BATCHES[-1]), f"for images of {shorter}x{longer} px on the {kind}"


def _precision(device: Device) -> tuple[str, str]:
    """Lightning's name of the number format of the network, and why."""
    if device.fast_bf16:
        return "bf16-mixed", "the tensor cores of the GPU are made for it"
    if device.kind == "cpu":
        return "32-true", "some CPUs are faster with bf16, others many times slower"
    return "32-true", "only NVIDIA GPUs from Ampere on are sure to be faster with bf16"


def _start(channels: Sequence[str], trained: Sequence[str]) -> tuple[bool, str]:
    """Whether the initial weights know enough of the channels to fine-tune gently, and a description of them."""
    if not trained:
        return False, "from new weights"
    known = sum(name in trained for name in channels)
    text = f"from weights that know {known} of {counted(len(channels), 'channel')}"
    return known >= KNOWN_SHARE * len(channels), text


class _Turns(NamedTuple):
    """Rotation in degrees, probabilities of flips, share of the training with augmentation, and the reasons."""

    rotation: float
    horizontal_flip: float
    vertical_flip: float
    share: float
    reason: str
    across: str = ""
    upside_down: str = ""


def _turns(annotations: Annotations, sizes: np.ndarray, flip_pairs: str | Sequence[str]) -> _Turns:
    """How far training images may be rotated and flipped, judging by the directions in their labels."""
    without = sides_without_partner(annotations.groups, flip_pairs)
    found = measure_orientation(annotations, sizes, mirror_permutation(annotations.groups, flip_pairs))
    others = found is not None and (
        (found.direction >= SAME_WAY and found.mirrored <= LEFT_IN_MIRRORS * found.direction)
        or (found.hand >= SAME_HAND and found.mirrored_hand <= LEFT_IN_MIRRORS * found.hand)
    )
    of_mirrors = ""
    if without:
        of_mirrors = f", but {', '.join(without)} have no certain partner to swap with in mirrored images"
    elif others:
        of_mirrors = ", but in mirrored images they would lie the other way round"
    flip, of_mirrors = (0.0, f"{of_mirrors} (see --flip_pairs)") if of_mirrors else (0.5, "")
    if found is None or not (found.direction >= SAME_WAY or found.axis >= SAME_AXIS or found.steady):
        caution = of_mirrors or "; use 0 if mirrored labels would be wrong"
        return _Turns(UNKNOWN_ROTATION, flip, 0.0, 1.0, "the labels indicate no direction", caution)
    if found.direction >= SAME_WAY:
        spread = _spread(found.direction)
        text = f"the directions in the labels vary by {counted(round(spread), 'degree')}"
        share = AUGMENTED_SHARE if spread <= SMALLEST_ROTATION else 1.0
        return _Turns(max(SMALLEST_ROTATION, spread), flip, 0.0, share, text, of_mirrors)
    if found.axis >= SAME_AXIS:
        spread = _spread(found.axis) / 2
        text = f"the labels point along one axis, both ways, and vary by {counted(round(spread), 'degree')}"
        return _Turns(max(SMALLEST_ROTATION, spread), flip, flip, 1.0, text, of_mirrors, of_mirrors)
    return _Turns(180.0, flip, 0.0, 1.0, "the labels point in all directions", of_mirrors)


def _spread(agreement: float) -> float:
    """Circular standard deviation, rounded to whole degrees, of directions whose mean vector has this length."""
    return float(round(math.degrees(math.sqrt(-2 * math.log(min(agreement, 1.0))))))
