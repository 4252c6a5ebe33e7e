"""Fills the disk of a training, makes it read-only, and takes away an image; needs root, for a small tmpfs.

    python trials/full_disk.py

Prints what each training said, and checks that it ended with the same weights after it was resumed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from kill_and_resume import DATA, differences, flags

COMMAND = [sys.executable, "-m", "keypoint_detection.cli", "train"]
PLAIN = {"backbone_type": "Unet", "max_epochs": 40, "checkpoint_every_n_steps": 1, "wandb_mode": "disabled"}


def train(folder: Path, **changes: object) -> subprocess.Popen[str]:
    """Starts a training."""
    arguments = flags({**PLAIN, **changes}, folder)
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for its end; returns its exit code and the last line that it printed."""
    _, errors = process.communicate()
    return f"exit {process.returncode}: {(errors.strip().splitlines() or ['nothing said'])[-1]}"


def wait_for(path: Path) -> None:
    """Waits until a file is there."""
    while not path.exists():
        time.sleep(0.05)


def last(folder: Path) -> dict[str, object]:
    """The last checkpoint of a run."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def mount(folder: Path, options: str) -> None:
    """Mounts an empty tmpfs."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def full_in_mid_training(root: Path) -> None:
    """Fills the disk while a training runs, makes room, and resumes."""
    disk = root / "small"
    mount(disk, "size=6m")
    try:
        process = train(disk / "run")
        wait_for(disk / "run" / "checkpoints" / "last.ckpt")
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(b"0" * 4096):
                    pass
            except OSError:
                print("full in mid-training:", finish(process))
        print("  last.ckpt holds step", last(disk / "run")["global_step"])
        print("full before training:", finish(train(disk / "other")))
        (disk / "filler").unlink()
        print("resumed with room:", finish(train(disk / "run")))
        finish(train(root / "whole"))
        print("  differences:", differences(last(root / "whole"), last(disk / "run")))
    finally:
        subprocess.run(["umount", disk], check=True)


def main() -> int:
    """Runs the trials."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        full_in_mid_training(root)
        read_only = root / "read_only"
        mount(read_only, "ro")
        try:
            print("read-only disk:", finish(train(read_only / "run")))
        finally:
            subprocess.run(["umount", read_only], check=True)
        for what in ("raise", "skip"):
            data = root / what
            subprocess.run(["cp", "-r", DATA, data], check=True)
            process = train(data / "run", json_dataset_path=data / "annotations.json", corrupt_images=what,
                            cache_images=False, image_dataset_path=data, max_epochs=10)  # fmt: skip
            wait_for(data / "run" / "checkpoints" / "last.ckpt")
            next(data.rglob("*.png")).unlink()
            print(f"image missing in mid-training, --corrupt_images {what}:", finish(process))
    return 0


if __name__ == "__main__":
    sys.exit(main())
