"""What makes the device fast and changes no result beyond rounding."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from torch import nn

from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.wording import first_line

logger = logging.getLogger(__name__)

# Compute capability from which the tensor cores of NVIDIA GPUs take TF32 and bf16.
_AMPERE = (8, 0)

# Shapes of batches that are compiled; others are computed as without. Images that grow come in some five sizes, each to
# train and to validate on, and in whole and last batches. torch itself stops at 8, before the images are of full size.
COMPILED_SHAPES = 32


class DeviceSpeed(pl.Callback):
    """Compiles the backbone where that is asked for.

    Args:
        compile: Compile the backbone with torch.compile. This takes a minute or two for every image size, and pays off
            in long training runs on a GPU. If it is not possible, a warning says why and training continues without it.
    """

    def __init__(self, compile: bool = False) -> None:
        self.compile = compile

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepares the network once it lies on its device."""
        if self.compile and compile_backbone(pl_module):
            logger.info("compiling the backbone; the first steps take long")


def is_ampere(device: torch.device) -> bool:
    """Whether a device is an NVIDIA GPU of Ampere or later, whose tensor cores take TF32 and bf16."""
    # torch calls AMD's GPUs cuda too, and counts their capabilities otherwise.
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= _AMPERE


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Lets matrix products, as in the layers of transformers, be in TF32 where the GPU has it.

    Convolutions are so by torch's own default. Muon's products may be too: with factors of 10 bits its singular values
    end as near 1. Where somebody has chosen for the process, that stays; afterwards it is as it was.

    Args:
        device: Where the network is computed.
    """
    # The question is an error where somebody has chosen by backend, which Lightning asks on these GPUs as well.
    if not is_ampere(device) or torch.get_float32_matmul_precision() != "highest":
        yield
        return
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def compile_backbone(detector: KeypointDetector) -> bool:
    """Compiles the backbone with `torch.compile`, or goes on without and logs why that is not possible here.

    Args:
        detector: The detector, on its device.

    Returns:
        Whether the backbone will be compiled.
    """
    channels = detector.backbone.n_channels_in
    try:
        probe = torch.compile(nn.Conv2d(channels, 1, 1).to(detector.device))
        probe(torch.zeros(1, channels, 8, 8, device=detector.device)).sum().backward()
    except Exception as error:  # noqa: BLE001  whatever is missing (compiler, platform, Python), training goes on
        logger.warning("the backbone is not compiled, because torch.compile failed here: %s", first_line(error))
        return False
    # For each size by itself: a graph for all sizes, which torch turns to at the second one, fails in its compiler.
    detector.backbone.compile(dynamic=False)
    from torch._dynamo import config  # loaded by the probe; to import it costs seconds

    config.recompile_limit = max(config.recompile_limit, COMPILED_SHAPES)
    return True
