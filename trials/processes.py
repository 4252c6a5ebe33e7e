"""Trains, evaluates and predicts with one process and with several, and compares all numbers.

    python trials/processes.py --processes 2 3

There are 11 images and 7 for validation, which neither 2 nor 3 processes and no batch size divides.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

COMMAND = [sys.executable, "-m", "keypoint_detection.cli"]


def run(command: list[str], *arguments: object, **variables: str) -> None:
    """Runs a command to its end, quietly, for five minutes at most."""
    words = [*command, *map(str, arguments)]
    done = subprocess.run(
        words, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed with {done.returncode}:\n{done.stdout}\n{done.stderr[-4000:]}")


def training(data: Path, folder: Path) -> list[object]:
    """Flags of a training that changes no weight, so that all processes measure the same ones."""
    return [
        "--json_dataset_path", data / "dataset.json", "--json_validation_dataset_path", data / "validation.json",
        "--batch_size", 2, "--num_workers", 0, "--max_epochs", 1, "--learning_rate", 1e-20, "--ema_decay", 0,
        "--n_channels", 4, "--n_downsampling_layers", 2, "--n_resnet_blocks", 1, "--heatmap_stride", 2,
        "--accelerator", "cpu", "--wandb_mode", "offline", "--enable_progress_bar", "false",
        "--run_dir", folder, "--seed", 3, "--progressive_resizing", 0,
        "--normalization", "group",  # statistics of batches depend on how many there are
    ]  # fmt: skip


def sized_in_time(data: Path, folder: str) -> list[object]:
    """Flags of a training of half a minute."""
    flags = training(data, Path(folder))
    where = flags.index("--max_epochs")
    return [*flags[:where], "--max_time", "00:00:00:30", *flags[where + 2 :]]


def logged(folder: Path) -> dict[str, float]:
    """All values on the validation set."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return {k: v for row in rows for k, v in row.items() if k.startswith(("validation/", "best/"))}


def numbers(value: Any, name: str = "") -> dict[str, float]:
    """All numbers in nested values by name."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in numbers(part, f"{name}/{key}").items()}
    if isinstance(value, list):
        return numbers(dict(enumerate(value)), name)
    return {name: float(value)} if isinstance(value, int | float) else {}


def largest_difference(first: dict[str, float], second: dict[str, float]) -> float:
    """Over all values; infinite if one is missing, or no number, on one side."""
    if first.keys() != second.keys():
        return math.inf
    return max((difference(first[name], second[name]) for name in first), default=0.0)


def difference(first: float, second: float) -> float:
    """Between two values; infinite if only one of them is a finite number."""
    if first == second or (math.isnan(first) and math.isnan(second)):
        return 0.0
    return abs(first - second) if math.isfinite(first) and math.isfinite(second) else math.inf


def make_data(folder: Path) -> Path:
    """Renders the images."""
    for name, count in (("train", 11), ("validation", 7)):
        boxes = [sys.executable, "-m", "keypoint_detection.data.boxes"]
        run(boxes, "--count", count, "--image_size", 64, "--output", folder / name, "--seed", count)
        content = json.loads((folder / name / "annotations.json").read_text())
        for entry in content["dataset"]:
            entry["image_path"] = f"{name}/{entry['image_path']}"
        target = "dataset" if name == "train" else name
        (folder / f"{target}.json").write_text(json.dumps(content))
    odd = next((folder / "validation").rglob("*.png"))  # one of another size
    Image.open(odd).resize((80, 64)).save(odd)
    return folder


def main() -> int:
    """Runs the trials; returns 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--torchrun", action="store_true", help="Start the processes with torchrun, too.")
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        data = make_data(Path(name))
        one = data / "one"
        run([*COMMAND, "train"], *training(data, one))
        best = one / "checkpoints" / "best.ckpt"
        evaluate = ["--checkpoint", best, "--json_dataset_path", data / "validation.json", "--batch_size", 2]
        predict = ["--checkpoint", best, "--score_threshold", 0.001, data / "train", data / "validation"]
        run([*COMMAND, "evaluate"], *evaluate, "--device", "cpu", "--output", data / "one.json")
        run([*COMMAND, "predict"], *predict, "--device", "cpu", "--output", data / "found1.csv")
        starts = [(count, COMMAND) for count in options.processes]
        if options.torchrun:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
            starts.append((2, [*torchrun, "-m", "keypoint_detection.cli"]))
        for number, (count, command) in enumerate(starts):
            several = ["--accelerator", "cpu", "--devices", count, "--strategy", "ddp"]
            folder = data / f"several{number}"
            run([*command, "train"], *training(data, folder), *several[2:])
            # Clocks differ from one process to another, and all have to validate after the same epochs.
            run([*command, "train"], *sized_in_time(data, f"{folder}-in-time"), *several[2:])
            run([*command, "evaluate"], *evaluate, *several, "--output", data / "several.json")
            run([*command, "predict"], *predict, *several, "--output", data / f"founds{number}.csv")
            measured = [numbers(json.loads((data / f"{n}.json").read_text())) for n in ("one", "several")]
            found = [(data / f"found{n}.csv").read_text().splitlines() for n in ("1", f"s{number}")]
            points = [dict(enumerate(float(v) for row in rows[1:] for v in row.split(",")[3:])) for rows in found]
            same_order = [[row.split(",")[:3] for row in rows] for rows in found]
            differences = {
                "losses and metrics while training": largest_difference(logged(one), logged(folder)),
                "evaluate": largest_difference(*measured),
                "predict": largest_difference(*points) if same_order[0] == same_order[1] else math.inf,
                "pictures": abs(len(list(one.rglob("*.jpg"))) - len(list(folder.rglob("*.jpg")))),
                "wandb runs": abs(len(list(folder.glob("wandb/offline-run-*"))) - 1),
                "report": abs(
                    (one / "report.html").read_text().count("data:image/jpeg")
                    - (folder / "report.html").read_text().count("data:image/jpeg")
                ),
            }
            print(f"{count} processes{' of torchrun' if command is not COMMAND else ''}: {differences}")
            worst = max(worst, *differences.values())
    print(f"largest difference: {worst:.3g}")
    return int(worst > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
