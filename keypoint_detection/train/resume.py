"""Going on with a training that was interrupted: its folder, split, checkpoint, wandb run and what it had logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keypoint_detection.data.splits import SPLIT_FILE
from keypoint_detection.errors import InputError
from keypoint_detection.models.checkpoint_file import load_checkpoint
from keypoint_detection.train.run_folder import CURVES_FILE, RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """An interrupted training.

    Attributes:
        checkpoint: Where to go on from.
        step: Optimiser steps that were done there.
        folder: Folder of its run.
        split: Its split.
        wandb_id: Identifier of its wandb run, None if it had none.
        flags: The flags that it began with, `auto` replaced; none in a run of an older version.
    """

    checkpoint: Path
    step: int
    folder: RunFolder
    split: dict[str, Any]
    wandb_id: str | None
    flags: dict[str, Any]

    def decide(self, config: Mapping[str, Any], names: AbstractSet[str]) -> dict[str, Any]:
        """Decides as the training did where it began, maybe on another device.

        Args:
            config: A value for every flag.
            names: The flags that may be `auto`.

        Returns:
            A value for every flag.
        """
        decided = {name: self.flags[name] for name in names if config[name] == "auto" and name in self.flags}
        return {**config, **decided}

    def check(self, config: Mapping[str, Any], names: AbstractSet[str]) -> None:
        """Refuses to go on with other flags than those that the training began with.

        Args:
            config: A value for every flag.
            names: The flags that have to be the same.

        Raises:
            InputError: If one is not.
        """
        for name in sorted(names & self.flags.keys() & config.keys()):
            if _plain(config[name]) != _plain(self.flags[name]):
                raise InputError(
                    f"--{name} {config[name]}: the interrupted training has {self.flags[name]}, expected the same to "
                    f"go on with it; --checkpoint {self.checkpoint} starts a new one from its weights"
                )


def _plain(value: Any) -> Any:
    """A flag's value as it is read from JSON, and names in a list as they are in a text."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
        return " ".join(value)
    return json.loads(json.dumps(value, default=str))


def named_folder(run_dir: str | None = None, resume: str | None = None) -> RunFolder | None:
    """The folder of the run that the flags of `find_interrupted` name, which need not be there; None for a new one."""
    named = run_dir if resume in (None, "auto") else resume
    if named is None:
        return None
    path = Path(named)
    return RunFolder(path.absolute().parent.parent if path.suffix == ".ckpt" else path)


def find_interrupted(run_dir: str | None = None, resume: str | None = None) -> Resumed | None:
    """Finds the training to go on with.

    Args:
        run_dir: Folder of the run. With a job in it that SLURM has started again, nothing more has to be asked for.
        resume: Resume an interrupted training run; give its other flags again, or with --config and its hparams.yaml.
            The value is its folder or its last.ckpt, or auto for the folder --run_dir; with auto, a new run starts if
            there is nothing to resume.

    Returns:
        The training, or None for a new one.

    Raises:
        InputError: If there is nothing to go on with.
    """
    if resume is None and not (run_dir and RunFolder(Path(run_dir)).requeued):
        return None
    if resume == "auto" and run_dir is None:
        raise InputError("--resume auto: expected --run_dir too, the folder of the run to go on with")
    given = f"--run_dir {run_dir}" if resume is None else f"--resume {resume}"
    path, folder = Path(run_dir if resume in (None, "auto") else resume), named_folder(run_dir, resume)
    checkpoint = path if path.suffix == ".ckpt" else folder.latest_checkpoint
    if not checkpoint.exists():
        if resume != "auto":
            raise InputError(f"{given}: expected the last.ckpt of a training or the folder of its run")
        if (path / CURVES_FILE).exists():
            raise InputError(f"--run_dir {path}: holds a training that has ended, without its checkpoints/last.ckpt")
        return None
    content = load_checkpoint(checkpoint)
    if "optimizer_states" not in content:
        raise InputError(
            f"{given}: holds weights for use only, expected {checkpoint.with_name('last.ckpt')}; "
            f"--checkpoint {checkpoint} starts a new training from these weights"
        )
    if run_dir is not None and Path(run_dir).resolve() != folder.path.resolve():
        raise InputError(f"--run_dir {run_dir}: --resume {resume} goes on in {folder.path}, expected the same or none")
    split = folder.read_json(SPLIT_FILE)
    if split is None:
        raise InputError(f"{given}: expected {SPLIT_FILE} in {folder.path}, the folder of the run")
    logger.info("going on from %s, after step %d", checkpoint, content["global_step"])
    record = folder.read_json("run.json") or {}
    return Resumed(checkpoint, content["global_step"], folder, split, record.get("wandb_id"), record.get("flags", {}))
