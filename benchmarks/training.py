"""What evaluating after every epoch adds to training: `python benchmarks/training.py [TRAIN.json]`.

The same training run is timed in three ways, three times in turn: with validation, average precision, pictures and
checkpoints of the best epoch after every epoch; with validation after every epoch, but average precision and the best
checkpoint only after the last one, and no pictures; and with none of these. Without a file, it trains on images of
noise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from harness import THREADS, Row, add_json_flag, exit_code, prepare_json, report
from loader import write_images

from keypoint_detection import fit

EPOCHS = 10
ROUNDS = 3  # of all ways in turn: on shared cores, one training run differs from the next by a tenth
IMAGES = 64


def seconds_of_training(json_path: Path, **flags: Any) -> float:
    """Train, and return how long training alone took, without reading the labels and the final report."""
    seconds = []
    fit_of_lightning = pl.Trainer.fit

    def timed(*args: Any, **arguments: Any) -> None:
        start = time.perf_counter()
        fit_of_lightning(*args, **arguments)
        seconds.append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(pl.Trainer, "fit", timed):
        fit(
            json_dataset_path=str(json_path),
            max_epochs=EPOCHS,
            wandb_mode="disabled",
            run_dir=folder,
            enable_progress_bar=False,
            **flags,
        )
    return seconds[0]


def compare_on(json_path: Path, name: str, **flags: Any) -> list[Row]:
    """Train with evaluation, with validation alone, and without either."""
    ways: list[dict[str, Any]] = [
        {"ap_epoch_freq": 1},
        # The last epoch is evaluated regardless of the flags.
        {"ap_epoch_freq": 1, "ap_epoch_start": EPOCHS + 1, "max_pictures": 0},
        {"limit_val_batches": 0, "num_sanity_val_steps": 0},
    ]
    seconds = [[seconds_of_training(json_path, **way, **flags) for way in ways] for _ in range(ROUNDS)]
    with_evaluation, with_validation, without = (statistics.median(times) for times in zip(*seconds, strict=True))
    row = Row(
        name="evaluation within training",
        work=f"{name}, {EPOCHS} epochs, evaluating after every one",
        milliseconds=1000 * with_evaluation,
        baseline="the same run without evaluation",
        baseline_milliseconds=1000 * without,
        target=1 / 1.05,
        at_most=True,
    )
    validation = replace(
        row,
        name="validation within training",
        work=f"{name}, {EPOCHS} epochs, validating after every one, AP and the best checkpoint after the last",
        milliseconds=1000 * with_validation,
        target=None,
    )
    return [row, validation]


def run() -> list[Row]:
    """Compare on images of noise."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_images(Path(folder), IMAGES)
        return compare_on(path, f"{IMAGES} images of noise, 320x240", image_size=320)


def main() -> None:
    """Compare on the given file, or on images of noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json_path", nargs="?", type=Path, metavar="TRAIN.json")
    add_json_flag(parser)
    arguments = parser.parse_args()
    path = arguments.json_path
    prepare_json(arguments.json)
    torch.set_num_threads(THREADS)
    report(run() if path is None else compare_on(path, f"{path.parent.name}/{path.stem}"), arguments.json)


if __name__ == "__main__":
    sys.exit(exit_code(main))
