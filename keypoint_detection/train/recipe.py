"""What `auto` means: choices from the data and the device, each with its reason."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.geometry import fit_size, parse_image_size
from keypoint_detection.errors import InputError

logger = logging.getLogger(__name__)

Auto = Literal["auto"]

# The largest side of an image that trains well in minutes, by device.
LARGEST_SIDE = {"cpu": 320, "gpu": 640}


@dataclass
class Recipe:
    """The values that a training uses.

    Attributes:
        image_size: `[height, width]` in pixels that images are letterboxed into, or None for their own sizes.
        heatmap_stride: Pixels of the network's input per cell of a heatmap.
        heatmap_sigma: Standard deviation of the Gaussians in pixels of the network's input.
        batch_size: Images per step and process.
        learning_rate: Highest learning rate.
        precision: Lightning's name of the number format.
        reasons: Why `auto` chose what it chose, by name.
    """

    image_size: list[int] | None
    heatmap_stride: int
    heatmap_sigma: float
    batch_size: int
    learning_rate: float
    precision: str
    reasons: dict[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The hyperparameters by name, without the reasons."""
        values = asdict(self)
        del values["reasons"]
        return values


def choose_recipe(
    annotations: Annotations,
    sizes: np.ndarray,
    accelerator: str,
    image_size: str | int | list[int] | None = "auto",
    heatmap_stride: Literal[1, 2, 4] | Auto = "auto",
    heatmap_sigma: float | Auto = "auto",
    batch_size: int | Auto = "auto",
    learning_rate: float | Auto = "auto",
    precision: str = "auto",
) -> Recipe:
    """Replaces `auto` by values that suit the data and the device, and logs each with its reason.

    Args:
        annotations: The training images.
        sizes: `(N, 2)` int width and height of their files; 0 where the header was not read.
        accelerator: Kind of device that trains: `cpu` or any other.
        image_size: Size in pixels that images are resized into, keeping their aspect: `256`, or `"256 320"` (height
            width). none keeps every image as it is.
        heatmap_stride: Pixels of the network's input per cell of the heatmaps: 1, 2 or 4.
        heatmap_sigma: Standard deviation of the Gaussian at each keypoint, in pixels of the network's input.
        batch_size: Images per step and process.
        learning_rate: Highest learning rate.
        precision: Number format of the network: 32, bf16-mixed or 16-mixed. Loss, heatmaps and metrics stay in
            32 bits.

    Returns:
        The values.

    Raises:
        InputError: If a value is out of its range.
    """
    reasons: dict[str, str] = {}

    def choose(name: str, value: Any, choice: Any, reason: str) -> Any:
        if value != "auto":
            return value
        reasons[name] = f"{choice}: {reason}"
        return choice

    known = sizes[sizes.min(axis=1) > 0]
    largest = int(known.max()) if len(known) else 0
    limit = LARGEST_SIDE["cpu" if accelerator == "cpu" else "gpu"]
    fitted = [limit, limit] if largest > limit else None
    reason = f"the largest side of an image is {largest} px" + (f", and {limit} px train faster" if fitted else "")
    size = parse_image_size(choose("image_size", image_size, fitted, reason))
    side = int(np.median([min(fit_size((height, width), size)) for width, height in known[:1000]])) if len(known) else 0
    stride = choose("heatmap_stride", heatmap_stride, _stride(side), f"the images' short side is {side} px")
    sigma = choose("heatmap_sigma", heatmap_sigma, 1.5 * stride, "1.5 cells of the heatmap")
    recipe = Recipe(
        image_size=list(size) if size else None,
        heatmap_stride=stride,
        heatmap_sigma=sigma,
        batch_size=choose("batch_size", batch_size, 4 if accelerator == "cpu" else 16, f"the device is {accelerator}"),
        learning_rate=choose("learning_rate", learning_rate, 2e-3, "AdamW on one cycle"),
        precision=choose("precision", precision, "32-true", "the heatmaps' smallest values need it"),
        reasons=reasons,
    )
    if recipe.heatmap_sigma <= 0 or recipe.batch_size < 1 or recipe.learning_rate <= 0:
        raise InputError("--heatmap_sigma, --batch_size and --learning_rate: expected positive numbers")
    for name, text in reasons.items():
        logger.info("--%s %s", name, text)
    return recipe


def _stride(side: int) -> int:
    """The coarsest stride at which an image's short side still has 32 cells."""
    return next((stride for stride in (4, 2) if side >= 32 * stride), 1)
