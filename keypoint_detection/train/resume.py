"""Going on with a training that was interrupted: its folder, split, checkpoint, wandb run and what it had logged."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import CSVLogger

from keypoint_detection.errors import InputError
from keypoint_detection.models.checkpoint_file import load_checkpoint
from keypoint_detection.train.run_folder import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """An interrupted training.

    Attributes:
        checkpoint: Where to go on from.
        folder: Folder of its run.
        split: Its split.
        wandb_id: Identifier of its wandb run, None if it had none.
    """

    checkpoint: Path
    folder: RunFolder
    split: dict[str, Any]
    wandb_id: str | None


def find_interrupted(run_dir: str | None = None, resume: str | None = None) -> Resumed | None:
    """Finds the training to go on with.

    Args:
        run_dir: Folder of the run.
        resume: Go on with an interrupted training: its folder or its last.ckpt, or auto for the folder --run_dir, where
            nothing to resume means a new training.

    Returns:
        The training, or None for a new one.

    Raises:
        InputError: If there is nothing to go on with.
    """
    if resume is None:
        return None
    if resume == "auto" and run_dir is None:
        raise InputError("--resume auto: expected --run_dir too, the folder of the run to go on with")
    path = Path(run_dir if resume == "auto" else resume)
    checkpoint = path if path.suffix == ".ckpt" else path / "checkpoints" / "last.ckpt"
    if resume == "auto" and not checkpoint.exists():
        return None
    load_checkpoint(checkpoint)
    folder = RunFolder(checkpoint.parents[1])
    split = folder.read_json("split.json")
    if split is None:
        raise InputError(f"--resume {resume}: expected split.json in {folder.path}, the folder of the run")
    logger.info("going on from %s", checkpoint)
    return Resumed(checkpoint, folder, split, (folder.read_json("run.json") or {}).get("wandb_id"))


def keep_logged_metrics(csv_logger: CSVLogger, checkpoint: Path) -> None:
    """Hands a new CSV logger, which starts with an empty file, what was logged up to a checkpoint.

    Args:
        csv_logger: The logger, not used so far.
        checkpoint: Where the training goes on from.
    """
    step = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    path = Path(csv_logger.log_dir) / "metrics.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if int(row["step"]) < step:
                    rows.append({name: value for name, value in row.items() if value})
    csv_logger.experiment.metrics = rows
    csv_logger.save()
