"""Kills trainings at random moments, resumes them, and compares the end with that of one that was never interrupted.

    python trials/kill_and_resume.py --kills 20

Weights, optimiser, schedule and random states have to be equal to the bit, and `metrics.csv` to the byte.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import keypoint_detection.train.train as training
from keypoint_detection.models.backbones import BACKBONES, Unet

DATA = Path(__file__).parents[1] / "test" / "test_dataset"


class Noisy(Unet):
    """A backbone that draws random numbers at every step, as dropout does."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As `Unet`, with dropout."""
        return torch.nn.functional.dropout(super().forward(images), 0.2, self.training)


KINDS = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
# What a training ends with that a signal stopped: one that cannot answer SIGKILL, one that wrote its checkpoint.
EXIT_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}

# How the trainings differ: what sizes them, what their schedule looks at, when they save and validate.
VARIANTS: list[dict[str, Any]] = [
    {"max_epochs": 24, "checkpoint_every_n_steps": 1},
    {"max_epochs": 24, "checkpoint_every_n_steps": 3, "num_workers": 1},
    {"max_steps": 94, "checkpoint_every_n_epochs": 1},
    {"max_epochs": 24, "checkpoint_every_n_steps": 2, "learning_rate_schedule": "plateau", "plateau_patience": 0,
     "ap_epoch_freq": 1, "check_val_every_n_epoch": 3, "accumulate_grad_batches": 2},
    {"max_steps": 94, "checkpoint_every_n_steps": 1, "val_check_interval": 2, "ap_epoch_freq": 1},
]  # fmt: skip


def flags(variant: dict[str, Any], folder: Path) -> list[str]:
    """The command line of a training."""
    annotations = DATA / "annotations.json"
    values = {
        "json_dataset_path": annotations, "json_validation_dataset_path": annotations, "wandb_mode": "offline",
        "batch_size": 1, "num_workers": 0, "seed": 1, "backbone_type": "Noisy", "n_channels": 4,
        "n_downsampling_layers": 2, "n_resnet_blocks": 1, "accelerator": "cpu", "max_pictures": 1,
        "enable_progress_bar": False, "log_every_n_steps": 2, "run_dir": folder, "resume": "auto", **variant,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in values.items()]


def train(arguments: list[str], log: Path) -> None:
    """Trains in this process, quietly."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.setpgrp()  # wandb's process is killed with it
    BACKBONES["Noisy"] = Noisy
    sys.exit(training.main(arguments))


def start(arguments: list[str], log: Path) -> multiprocessing.Process:
    """Starts a training in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(arguments, log))
    process.start()
    return process


def progress(folder: Path) -> int:
    """Rows that were logged so far."""
    path = folder / "metrics.csv"
    return path.read_text().count("\n") if path.exists() else 0


def interrupt(folder: Path, arguments: list[str], log: Path, kills: int, chance: random.Random) -> int:
    """Trains to the end, interrupted up to so many times; returns how often it was.

    Raises:
        SystemExit: If a training ends with another exit code than 0 or that of the signal.
    """
    done = 0
    while True:
        before = progress(folder)
        process = start(arguments, log)
        if done < kills:
            # By what it has logged and not by the clock, so that fast machines are not through before.
            rows = before + 1 + chance.randrange(25)
            while process.is_alive() and progress(folder) < rows:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
            if process.is_alive():
                kind = KINDS[done % len(KINDS)]
                with suppress(ProcessLookupError):  # it has just ended
                    (os.killpg if kind == signal.SIGKILL else os.kill)(process.pid, kind)
                process.join()
                late = " (it had ended)" if process.exitcode == 0 else ""
                print(f"  {kind.name} after row {progress(folder)}: exit {process.exitcode}{late}")
                if process.exitcode == EXIT_CODES[kind]:
                    done += 1
                    continue
        process.join()
        if process.exitcode == 0:
            return done
        raise SystemExit(f"failed with {process.exitcode}:\n{log.read_text()[-3000:]}")


def differences(whole: Any, again: Any, name: str = "") -> list[str]:
    """Names of all values that are not equal to the bit; what names files is left out."""
    if isinstance(whole, torch.Tensor) and isinstance(again, torch.Tensor):
        same = whole.dtype == again.dtype and torch.equal(whole.nan_to_num(7e7), again.nan_to_num(7e7))
        return [] if same else [name]
    if isinstance(whole, dict) and isinstance(again, dict):
        if whole.keys() != again.keys():
            return [f"{name}: {set(whole) ^ set(again)}"]
        names = (key for key in whole if "BestCheckpoint" not in str(key))
        return [d for key in names for d in differences(whole[key], again[key], f"{name}/{key}")]
    if isinstance(whole, (list, tuple)) and len(whole) == len(again):
        return [d for i, pair in enumerate(zip(whole, again, strict=True)) for d in differences(*pair, f"{name}/{i}")]
    return [] if whole == again or (whole != whole and again != again) else [f"{name}: {whole} {again}"]


def main() -> int:
    """Runs the trials; returns 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="How many, over all variants; rounded up for each.")
    parser.add_argument("--seed", type=int, default=0)
    numbers = range(len(VARIANTS))
    parser.add_argument("--variants", type=int, nargs="+", default=numbers, choices=numbers)
    options = parser.parse_args()
    if options.kills < 0:
        parser.error(f"--kills {options.kills}: expected at least 0")
    chance, total, failed = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        for number in options.variants:
            whole, again = Path(name) / f"whole{number}", Path(name) / f"again{number}"
            interrupt(whole, flags(VARIANTS[number], whole), Path(name) / "log", 0, chance)
            share = -(-options.kills // len(options.variants))
            print(f"variant {number}: {VARIANTS[number]}")
            total += interrupt(again, flags(VARIANTS[number], again), Path(name) / "log", share, chance)
            first, second = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (whole, again))
            found = differences(first, second)
            if (whole / "metrics.csv").read_bytes() != (again / "metrics.csv").read_bytes():
                found.insert(0, "metrics.csv")
            print("  equal" if not found else f"  {len(found)} values differ: {found[:5]}")
            failed += bool(found)
    print(f"{total} interruptions, {failed} of {len(options.variants)} trainings ended differently")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
