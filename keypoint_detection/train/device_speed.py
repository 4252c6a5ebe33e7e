"""What makes the device fast and changes no result beyond rounding."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
import torch

logger = logging.getLogger(__name__)

# Compute capability from which NVIDIA GPUs have TF32.
_TF32_CAPABILITY = (8, 0)


class DeviceSpeed(pl.Callback):
    """Compiles the backbone where that is asked for, and lets GPUs that have it convolve in TF32.

    Args:
        compile: Compile the backbone with torch.compile. It takes a minute or two for every size of image, and pays
            in long trainings on a GPU. Where it is not possible, a warning says why and training goes on without.
    """

    def __init__(self, compile: bool = False) -> None:
        self.compile = compile

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepares the network once it lies on its device."""
        if pl_module.device.type == "cuda" and torch.cuda.get_device_capability(pl_module.device) >= _TF32_CAPABILITY:
            # Not matrix products: in TF32, the iterations by which Muon makes its steps orthogonal may diverge.
            torch.backends.cudnn.allow_tf32 = True
        if self.compile and pl_module.compile_backbone():
            logger.info("compiling the backbone; the first steps take long")
