"""Fills the disk of a training, makes it read-only, and takes away an image; needs root, for a small tmpfs.

    python trials/full_disk.py

Prints what each training said. Each has to end as it should, without a traceback, and the one that met a full disk
with the same weights as one that did not, after it was resumed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from kill_and_resume import DATA, differences, flags

COMMAND = [sys.executable, "-m", "keypoint_detection.cli", "train"]
PLAIN = {"backbone_type": "Unet", "max_epochs": 40, "checkpoint_every_n_steps": 1, "wandb_mode": "disabled"}
# Seconds for which anything is waited for.
DEADLINE = 300


class Training:
    """A training in a process of its own.

    Args:
        folder: Of the run.
        log: Gets what it prints: a pipe that nobody reads would stop it when it is full.
        **changes: Flags.
    """

    def __init__(self, folder: Path, log: Path, **changes: object) -> None:
        self.log = log
        with log.open("wb") as output:
            command = [*COMMAND, *flags({**PLAIN, **changes}, folder)]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=output)

    def wait_for(self, path: Path) -> None:
        """Waits until it has written a file, or has ended, or is too slow; `Trials.check` notices the latter two."""
        end = time.monotonic() + DEADLINE
        while not path.exists() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)

    def finish(self) -> tuple[int | None, str]:
        """Waits for its end; returns its exit code, None if it had to be stopped, and what it printed."""
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            code = None
            self.stop()
        return code, self.log.read_text(errors="replace")

    def stop(self) -> None:
        """Ends it, if it runs."""
        self.process.kill()
        self.process.wait()


class Trials:
    """All trainings of the trials, and what went wrong.

    Args:
        root: Folder for their files.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.failures: list[str] = []
        self._trainings: list[Training] = []

    def start(self, folder: Path, **changes: object) -> Training:
        """Starts a training."""
        training = Training(folder, self.root / f"log{len(self._trainings)}", **changes)
        self._trainings.append(training)
        return training

    def end(self, what: str, training: Training, expected: int, says: str = "") -> None:
        """Waits for the end of a training, and compares its exit code and what it said in its last line."""
        code, text = training.finish()
        last = (text.strip().splitlines() or ["nothing said"])[-1]
        self.check(f"{what}: exit {code}: {last}", code == expected and says in last and "Traceback" not in text)

    def check(self, what: str, is_right: bool) -> None:
        """Prints a result, and keeps it if it is wrong."""
        print(what if is_right else f"{what} FAILED", flush=True)
        if not is_right:
            self.failures.append(what)

    def stop(self) -> None:
        """Ends what still runs."""
        for training in self._trainings:
            training.stop()


def last(folder: Path) -> dict[str, object]:
    """The last checkpoint of a run, empty if there is none."""
    path = folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True) if path.exists() else {}


def mount(folder: Path, options: str) -> None:
    """Mounts an empty tmpfs."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def full_in_mid_training(trials: Trials) -> None:
    """Fills the disk while a training runs, makes room, and resumes."""
    disk = trials.root / "small"
    mount(disk, "size=6m")
    try:
        training = trials.start(disk / "run")
        training.wait_for(disk / "run" / "checkpoints" / "last.ckpt")
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(b"0" * 4096):
                    pass
            except OSError:
                trials.end("full in mid-training", training, 2, "No space left on device")
        steps = last(disk / "run").get("global_step", 0)
        trials.check(f"  last.ckpt holds step {steps}", steps > 0)
        trials.end("full before training", trials.start(disk / "other"), 2, "No space left on device")
        (disk / "filler").unlink()
        trials.end("resumed with room", trials.start(disk / "run"), 0)
        trials.end("without a full disk", trials.start(trials.root / "whole"), 0)
        found = differences(last(trials.root / "whole"), last(disk / "run"))
        trials.check(f"  differences: {found}", not found)
    finally:
        trials.stop()
        subprocess.run(["umount", disk], check=True)


def read_only_disk(trials: Trials) -> None:
    """Trains where nothing can be written."""
    disk = trials.root / "read_only"
    mount(disk, "ro")
    try:
        trials.end("read-only disk", trials.start(disk / "run"), 2, "Read-only file system")
    finally:
        trials.stop()
        subprocess.run(["umount", disk], check=True)


def image_that_disappears(trials: Trials, corrupt_images: str, expected: int, says: str) -> None:
    """Takes an image away from a training that runs."""
    data = trials.root / corrupt_images
    subprocess.run(["cp", "-r", DATA, data], check=True)
    training = trials.start(data / "run", json_dataset_path=data / "annotations.json", corrupt_images=corrupt_images,
                            cache_images=False, image_dataset_path=data, max_epochs=10)  # fmt: skip
    training.wait_for(data / "run" / "checkpoints" / "last.ckpt")
    next(data.rglob("*.png")).unlink()
    trials.end(f"image missing in mid-training, --corrupt_images {corrupt_images}", training, expected, says)


def main() -> int:
    """Runs the trials; returns 1 if anything ended in another way than it should."""
    if os.geteuid() != 0:
        print("error: expected to be root, who may mount", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        trials = Trials(Path(name))
        try:
            full_in_mid_training(trials)
            read_only_disk(trials)
            image_that_disappears(trials, "raise", 2, "no such image file")
            image_that_disappears(trials, "skip", 0, "")
        finally:
            trials.stop()
    print(f"{len(trials.failures)} failures")
    return int(bool(trials.failures))


if __name__ == "__main__":
    sys.exit(main())
