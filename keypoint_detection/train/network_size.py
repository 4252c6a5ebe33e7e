"""How large a network is."""

from __future__ import annotations

import logging

import pytorch_lightning as pl

from keypoint_detection.wording import counted

logger = logging.getLogger(__name__)


class NetworkSize(pl.Callback):
    """Logs the size of the network before training."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Counts the parameters here, because a strategy may spread them over devices later."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        total = sum(p.numel() for p in pl_module.parameters())
        encoder = sum(p.numel() for module in pl_module.backbone.encoder_modules() for p in module.parameters())
        epochs = pl_module.hparams.freeze_encoder_epochs
        while_frozen = "" if epochs < 0 else f" for {counted(epochs, 'epoch')}"
        frozen = f"; the {encoder:,} of the encoder are frozen{while_frozen}" if epochs else ""
        logger.info("network: %s parameters%s", f"{total:,}", frozen)
