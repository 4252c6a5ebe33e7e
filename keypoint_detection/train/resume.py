"""Resuming an interrupted training run: its folder, split, checkpoint, wandb run and flags."""

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
    """An interrupted training run.

    Attributes:
        checkpoint: The checkpoint to resume from.
        step: Number of optimiser steps in it.
        folder: Folder of the run.
        split: Its split.
        wandb_id: Identifier of its wandb run, or None if it had none.
        flags: The flags that it started with, with `auto` replaced; empty for a run of an older version.
        latest_record: What is known about its latest start, see `RunFolder.write_record`.
    """

    checkpoint: Path
    step: int
    folder: RunFolder
    split: dict[str, Any]
    wandb_id: str | None
    flags: dict[str, Any]
    latest_record: dict[str, Any]

    def announce(self) -> None:
        """Logs from where it is resumed, once its flags and its data are known to be usable."""
        logger.info("resuming from %s, after step %d", self.checkpoint, self.step)

    def decide(self, config: Mapping[str, Any], names: AbstractSet[str]) -> dict[str, Any]:
        """Replaces `auto` by what the run chose when it started, possibly on another device.

        Args:
            config: A value for every flag.
            names: The flags that may be `auto`.

        Returns:
            A value for every flag.
        """
        decided = {name: self.flags[name] for name in names if config[name] == "auto" and name in self.flags}
        return {**config, **decided}

    def check(self, config: Mapping[str, Any], names: AbstractSet[str]) -> None:
        """Refuses to resume with flags that differ from those that the run started with.

        Args:
            config: A value for every flag.
            names: The flags that have to be the same.

        Raises:
            InputError: If one of them differs.
        """
        for name in sorted(names & self.flags.keys() & config.keys()):
            if plain_flag(config[name]) != plain_flag(self.flags[name]):
                raise InputError(
                    f"--{name} {config[name]}: the interrupted run has {self.flags[name]}, expected the same to resume "
                    f"it; --checkpoint {self.checkpoint} starts a new run from its weights"
                )


def plain_flag(value: Any) -> Any:
    """A flag's value as read back from JSON, with a list of names joined to text."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
        return " ".join(value)
    return json.loads(json.dumps(value, default=str))


def named_folder(run_dir: str | None = None, resume: str | None = None) -> RunFolder | None:
    """The folder that the flags of `find_interrupted` name, which need not exist; None if they name none."""
    named = run_dir if resume in (None, "auto") else resume
    if named is None:
        return None
    path = Path(named)
    return RunFolder(path.absolute().parent.parent if path.suffix == ".ckpt" else path)


def find_interrupted(run_dir: str | None = None, resume: str | None = None) -> Resumed | None:
    """Finds the training run to resume.

    Args:
        run_dir: Folder of the run. If SLURM has requeued the job of that run, it is resumed even without `resume`.
        resume: Resume an interrupted training run; give its other flags again, or with --config and its hparams.yaml.
            The value is its folder or its last.ckpt, or auto for the folder --run_dir; with auto, a new run starts if
            there is nothing to resume.

    Returns:
        The interrupted run, or None to start a new one.

    Raises:
        InputError: If there is nothing to resume.
    """
    if resume is None and not (run_dir and RunFolder(Path(run_dir)).requeued):
        return None
    if resume == "auto" and run_dir is None:
        raise InputError("--resume auto: expected --run_dir too, the folder of the run to resume")
    given = f"--run_dir {run_dir}" if resume is None else f"--resume {resume}"
    path, folder = Path(run_dir if resume in (None, "auto") else resume), named_folder(run_dir, resume)
    checkpoint = path if path.suffix == ".ckpt" else folder.latest_checkpoint
    if not checkpoint.exists():
        if resume != "auto":
            raise InputError(f"{given}: expected the last.ckpt of a training run, or its folder")
        if (path / CURVES_FILE).exists():
            raise InputError(f"--run_dir {path}: holds a finished training run without its checkpoints/last.ckpt")
        return None
    content = load_checkpoint(checkpoint)
    if "optimizer_states" not in content:
        raise InputError(
            f"{given}: holds only weights for use, expected {checkpoint.with_name('last.ckpt')}; "
            f"--checkpoint {checkpoint} starts a new training run from these weights"
        )
    if run_dir is not None and Path(run_dir).resolve() != folder.path.resolve():
        raise InputError(
            f"--run_dir {run_dir}: --resume {resume} continues in {folder.path}, expected the same folder or none"
        )
    split = folder.read_json(SPLIT_FILE)
    if split is None:
        raise InputError(f"{given}: expected {SPLIT_FILE} in {folder.path}, the folder of the run")
    record = folder.read_json("run.json") or {}
    wandb_id, flags, latest = record.get("wandb_id"), record.get("flags", {}), [record, *record.get("resumed", [])][-1]
    return Resumed(checkpoint, content["global_step"], folder, split, wandb_id, flags, latest)
