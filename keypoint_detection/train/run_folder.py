"""The folder of one run: its location and its provenance."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from keypoint_detection.errors import InputError
from keypoint_detection.files import make_folder, write_atomic
from keypoint_detection.wording import command_line

# Tells the processes that Lightning starts for the other ranks where the run's folder is: they run the same script
# later, and would choose another name.
RUN_DIR_VARIABLE = "KEYPOINT_DETECTION_RUN_DIR"
# Environment variables in which torchrun and SLURM's srun say how many processes they have started.
NUMBERS_OF_PROCESSES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# What is written at the end of a training run, the curves first.
CURVES_FILE = "curves.png"
REPORT_FILE = "report.html"
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "wandb", "numpy", "pillow")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: The folder. It exists once `make` has been called.
        is_new: Whether `choose` has created it.
    """

    path: Path
    is_new: bool = False

    @classmethod
    def choose(cls, run_dir: str | None = None, name: str | None = None) -> RunFolder:
        """Chooses the folder of a run. A new one is created, so that no other run chooses it; a given one is not.

        Args:
            run_dir: Folder of the run; by default a new `runs/<time>-<name>`.
            name: Name of the run, part of its folder's name.

        Returns:
            The folder.

        Raises:
            InputError: If no folder is given and each of several processes would have to choose one.
        """
        started_by_rank_zero = int(os.environ.get("LOCAL_RANK", "0")) > 0
        given = run_dir or (os.environ.get(RUN_DIR_VARIABLE) if started_by_rank_zero else None)
        if given is None and any(int(os.environ.get(name, "1")) > 1 for name in NUMBERS_OF_PROCESSES):
            raise InputError("--run_dir: expected a folder, because each process would choose a different one")
        if given is None:
            label = re.sub(r"[^\w.-]+", "-", name or "keypoints")
            return cls(_make_unused(Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{label}"), is_new=True)
        return cls(Path(given))

    @contextlib.contextmanager
    def removed_if_refused(self) -> Iterator[None]:
        """Removes a folder that `choose` has created, if training cannot be set up."""
        try:
            yield
        except InputError:
            if self.is_new:
                with contextlib.suppress(OSError):  # e.g. the parent holds other runs
                    self.path.rmdir()
                    self.path.parent.rmdir()
            raise

    def refuse_used(self) -> None:
        """Refuses a folder whose checkpoints a new training run would overwrite.

        Raises:
            InputError: If it holds any.
        """
        checkpoint = next(self.checkpoints.glob("*.ckpt"), None)
        if checkpoint:
            last = (self.checkpoints / "last.ckpt").exists()
            advice = f"; resume that run with its flags and --resume {self.path}" if last else ""
            raise InputError(
                f"--run_dir {self.path}: already holds a training run ({checkpoint.relative_to(self.path)}), expected "
                f"a new folder{advice}"
            )

    @property
    def requeued(self) -> list[Path]:
        """Checkpoints that Lightning wrote when SLURM announced that it would requeue the job."""
        return list(self.path.glob("hpc_ckpt_*.ckpt"))

    @property
    def latest_checkpoint(self) -> Path:
        """The checkpoint to resume from; the path of `last.ckpt` if there is none."""
        last = self.checkpoints / "last.ckpt"
        found = [path for path in (last, *self.requeued) if path.exists()]
        return max(found, key=lambda path: path.stat().st_mtime, default=last)

    def make(self) -> None:
        """Creates the folder and checks that it is writable.

        Raises:
            InputError: If it is not.
        """
        for folder in (self.path, self.checkpoints, self.pictures):
            make_folder(folder, f"--run_dir {self.path}")
        os.environ[RUN_DIR_VARIABLE] = str(self.path.absolute())

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        """Folder of the logged pictures."""
        return self.path / "pictures"

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file, whole or not at all.

        Args:
            name: Name of the file in the run's folder.
            content: What to write.
        """
        write_atomic(self.path / name, json.dumps(content, indent=1, default=str) + "\n")

    def read_json(self, name: str) -> Any | None:
        """Reads a JSON file in the run's folder, or returns None if there is no such file."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_record(self, record: Mapping[str, Any], goes_on: bool) -> None:
        """Writes `run.json`. A resumed run keeps what is there, and adds its own record.

        Args:
            record: Provenance of the run.
            goes_on: Whether it resumes an interrupted run.
        """
        before = self.read_json("run.json") if goes_on else None
        if before:
            wandb_id = record["wandb_id"] or before.get("wandb_id")
            record = {
                "flags": record["flags"],
                **before,
                "wandb_id": wandb_id,
                "resumed": [*before.get("resumed", []), record],
            }
        self.write_json("run.json", record)

    def record_end(self, step: int, origin: str) -> None:
        """Adds to the latest record in `run.json` that training has ended, and that all results are written.

        Args:
            step: Number of optimiser steps.
            origin: Which epoch `best.ckpt` is from, as text.
        """
        record = self.read_json("run.json") or {}
        [record, *record.get("resumed", [])][-1].update(ended_after_step=step, origin=origin)
        self.write_json("run.json", record)


def provenance(fingerprints: dict[str, str]) -> dict[str, Any]:
    """Collects what is needed to tell later how a run was produced.

    Args:
        fingerprints: Fingerprint of each data set, by name.

    Returns:
        Versions, git revision, command line, machine and data set fingerprints.
    """
    return {
        "command": command_line(),
        "folder": str(Path.cwd()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: _version(name) for name in ("keypoint_detection", *PACKAGES)},
        "git": _git_revision(),
        "data": fingerprints,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Git revision of the working directory, with `-dirty` if it has changes; None outside a repository."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, encoding="utf-8", timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _make_unused(path: Path) -> Path:
    """Creates the path, or the first of `path-2`, `path-3`, ... that does not exist; `make` reports any errors."""
    candidate, number = path, 1
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                candidate.mkdir()  # just checking would not do: another run may choose at the same time
                break
            except FileExistsError:
                number += 1
                candidate = path.with_name(f"{path.name}-{number}")
    return candidate
