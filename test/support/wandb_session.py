"""What a test of wandb logs, and how it looks at what arrived."""

import logging
from pathlib import Path

import numpy as np
import wandb
from wandb.cli.cli import cli

from keypoint_detection.train.wandb_logger import create_wandb_logger, log_checkpoint_artifact

HYPERPARAMETERS = {"learning_rate": 0.25, "keypoint_channels": ["corner", "flap"], "path": Path("data")}
CONFIG = {"learning_rate": 0.25, "keypoint_channels": ["corner", "flap"], "path": "data"}
LOSSES = [1.0, 0.5, 0.25]
PICTURE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def start(folder, mode="auto", **arguments):
    return create_wandb_logger(folder, HYPERPARAMETERS, wandb_mode=mode, **arguments)


def log_losses(logger, losses=LOSSES, first_step=0):
    for step, loss in enumerate(losses, start=first_step):
        logger.log_metrics({"train/loss": loss}, step=step)


def log_all(logger, folder):
    """All that a training logs: rows, a picture and a checkpoint."""
    log_losses(logger)
    logger.log_image("validation/corner", [PICTURE], step=len(LOSSES))
    checkpoint = folder / "best.ckpt"
    checkpoint.write_bytes(b"weights" * 1000)
    log_checkpoint_artifact(logger, checkpoint)
    return checkpoint


def sync(folder):
    """What the command `wandb sync` does."""
    wandb.teardown()
    cli.main(["sync", "--include-online", str(folder)], standalone_mode=False)


def own_messages(caplog, level=logging.WARNING):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("keypoint_detection") and record.levelno >= level
    ]


def losses_of(history):
    return [row["train/loss"] for row in history if "train/loss" in row]
