"""Settings that make the device faster without changing results beyond rounding."""

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

# Compute capability from which the tensor cores of NVIDIA GPUs support TF32 and bf16.
_AMPERE = (8, 0)

# Maximum number of batch shapes to compile for; further ones run uncompiled. Growing images come in about five sizes,
# each in training and validation and in full and last batches. torch's default is 8, which growing images would use up
# before they reach full size.
COMPILED_SHAPES = 32


class DeviceSpeed(pl.Callback):
    """Compiles the backbone if requested.

    Args:
        compile: Compile the backbone with torch.compile. This takes a minute or two for every image size, and pays off
            in long training runs on a GPU. If it is not possible, a warning says why and training continues without it.
    """

    def __init__(self, compile: bool = False) -> None:
        self.compile = compile

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepares the network once it is on its device."""
        if self.compile and compile_backbone(pl_module):
            logger.info("compiling the backbone; the first steps will be slow")


def is_ampere(device: torch.device) -> bool:
    """Whether a device is an NVIDIA GPU from Ampere on, whose tensor cores support TF32 and bf16."""
    # torch calls AMD's GPUs cuda too, but numbers their capabilities differently.
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= _AMPERE


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Computes matrix products, as in transformer layers, in TF32 if the GPU supports it.

    Convolutions already use it by torch's default. Muon's products may use it too: even with factors of 10 bits, its
    singular values end up just as close to 1. If the process has set a precision itself, that stays. On exit, the
    previous setting is restored.

    Args:
        device: The device that computes the network.
    """
    # Reading the precision is an error if it was set per backend, but Lightning reads it on these GPUs as well.
    if not is_ampere(device) or torch.get_float32_matmul_precision() != "highest":
        yield
        return
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def compile_backbone(detector: KeypointDetector) -> bool:
    """Compiles the backbone with `torch.compile`, or logs why that is not possible here and leaves it uncompiled.

    Args:
        detector: The detector, on its device.

    Returns:
        Whether the backbone will be compiled.
    """
    channels = detector.backbone.n_channels_in
    try:
        probe = torch.compile(nn.Conv2d(channels, 1, 1).to(detector.device))
        probe(torch.zeros(1, channels, 8, 8, device=detector.device)).sum().backward()
    except Exception as error:  # noqa: BLE001  whatever is missing (compiler, platform, Python), training continues
        logger.warning("the backbone is not compiled, because torch.compile failed here: %s", first_line(error))
        return False
    # One graph per size: at the second size, torch would turn to a dynamic graph, which fails in its compiler.
    detector.backbone.compile(dynamic=False)
    from torch._dynamo import config  # already loaded by the probe; importing it at the top would cost seconds

    config.recompile_limit = max(config.recompile_limit, COMPILED_SHAPES)
    return True
