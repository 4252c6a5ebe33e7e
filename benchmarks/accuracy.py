"""How good a detector the defaults train in a few minutes, from random weights, on your own data sets.

`python benchmarks/accuracy.py FOLDER/train.json:FOLDER/test.json ... --minutes 5` trains on each pair of files, given
only the paths and the time, and measures the best checkpoint on the test file. Errors and PCK are those of the top
detection of each channel that has one keypoint in an image; without a detection the error is the image's diagonal.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from harness import add_json_flag, exit_code, machine, prepare_json, write_json

from keypoint_detection import fit
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.images import read_header
from keypoint_detection.errors import InputError
from keypoint_detection.predict import KeypointPredictor
from keypoint_detection.wording import counted

COLUMNS = [
    "data",
    "seed",
    "median px",
    "mean px",
    "PCK@2",
    "PCK@4",
    "PCK@8",
    "AP@2",
    "AP@4",
    "AP@8",
    "images/s",
    "M parameters",
]


class SingleKeypoint(NamedTuple):
    """The only keypoint of a channel in an image.

    Attributes:
        path: image file.
        diagonal: diagonal of the image in pixels.
        channel: name of the channel.
        xy: `(2,)` in pixels.
    """

    path: Path
    diagonal: float
    channel: str
    xy: np.ndarray


def single_keypoints(json_path: Path) -> Iterator[SingleKeypoint]:
    """The only keypoints of channels that have one in an image, image by image."""
    annotations = read_annotations(json_path, json_path.parent)
    for index in range(len(annotations)):
        path = annotations.path(index)
        width, height = read_header(path)[:2]
        for name, xy in zip(annotations.channel_names, annotations.keypoints(index, width, height), strict=True):
            if len(xy) == 1:
                yield SingleKeypoint(path, math.hypot(width, height), name, xy[0])


def top_detections(checkpoint: Path, json_path: Path) -> Iterator[tuple[SingleKeypoint, np.ndarray | None]]:
    """Every single keypoint, with the `(2,)` xy of the top detection of its channel; None without a detection."""
    predictor = KeypointPredictor(checkpoint, score_threshold=0.0, max_keypoints=1)
    for path, keypoints in itertools.groupby(single_keypoints(json_path), key=lambda keypoint: keypoint.path):
        prediction = predictor(path)
        for keypoint in keypoints:
            found = prediction[keypoint.channel].xy
            yield keypoint, found[0] if len(found) else None


def top_errors(checkpoint: Path, json_path: Path) -> np.ndarray:
    """Distances in pixels from the top detections to the only keypoint of their channel, over all images."""
    pairs = top_detections(checkpoint, json_path)
    return np.array([truth.diagonal if xy is None else np.hypot(*(xy - truth.xy)) for truth, xy in pairs])


def own_flags(train: Path, test: Path, minutes: float, seed: int, folder: str) -> dict[str, Any]:
    """The training flags that this script sets itself."""
    seconds = round(60 * minutes)
    return {
        "json_dataset_path": str(train),
        "json_test_dataset_path": str(test),
        "max_time": f"00:{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
        "maximal_gt_keypoint_pixel_distances": "2 4 8",
        "seed": seed,
        "run_dir": folder,
        "wandb_mode": "disabled",
    }


def measure(train: Path, test: Path, minutes: float, seed: int, flags: dict[str, Any]) -> dict[str, Any]:
    """Train and measure once."""
    with tempfile.TemporaryDirectory() as folder:
        result = fit(**own_flags(train, test, minutes, seed, folder), **flags)
        with (Path(folder) / "metrics.csv").open() as file:
            steps = max(int(row["step"]) for row in csv.DictReader(file))
        images = len(json.loads((Path(folder) / "split.json").read_text())["train"])
        batch_size = yaml.safe_load((Path(folder) / "hparams.yaml").read_text())["batch_size"]
        errors = top_errors(result.best_checkpoint, test)
    row = {"data": f"{train.parent.name}/{train.stem}", "seed": seed}
    if len(errors):
        row |= {"median px": float(np.median(errors)), "mean px": float(np.mean(errors))}
        row |= {f"PCK@{distance}": float((errors <= distance).mean()) for distance in (2, 4, 8)}
    row |= {f"AP@{distance}": result.metrics[f"test/meanAP/d={distance}"] for distance in (2, 4, 8)}
    # The last batch of an epoch is smaller if the batch size does not divide the number of images.
    row["images/s"] = steps * images / -(-images // batch_size) / round(60 * minutes)
    row["M parameters"] = sum(p.numel() for p in result.detector.parameters()) / 1e6
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = [f"{row[c]:.3f}" if isinstance(row.get(c), float) else str(row.get(c, "-")) for c in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_pairs(pairs: list[str]) -> list[tuple[Path, Path]]:
    """Parse train.json:test.json.

    Raises:
        InputError: If a pair has another form, or a file is missing.
    """
    paths = [tuple(map(Path, pair.split(":"))) for pair in pairs]
    for pair, files in zip(pairs, paths, strict=True):
        if len(files) != 2:
            raise InputError(f"{pair}: expected train.json:test.json")
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: expected a file, found none")
    return paths


def parse_flags(items: list[str]) -> dict[str, Any]:
    """Parse FLAG=VALUE.

    Raises:
        InputError: If an item has another form, or is a flag that this script sets itself.
    """
    taken = own_flags(Path(), Path(), 1.0, 0, "")
    flags = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set {item}: expected FLAG=VALUE")
        if name in taken:
            raise InputError(f"--set {item}: the script sets {name} itself, expected none of {', '.join(taken)}")
        try:
            flags[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {item}: expected a YAML value") from error
    return flags


def main() -> None:
    """Train on all pairs of files with all seeds; print machine and settings, and a table that grows row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="train.json:test.json")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_json_flag(parser)
    parser.add_argument("--set", nargs="*", default=[], metavar="FLAG=VALUE", help="flags to train with, for ablations")
    arguments = parser.parse_args()
    if not 1 / 60 <= arguments.minutes < 24 * 60:
        raise InputError(f"--minutes {arguments.minutes:g}: expected at least a second, and less than a day")
    if not 0 <= min(arguments.seeds) <= max(arguments.seeds) < 2**32:
        raise InputError(f"--seeds {' '.join(map(str, arguments.seeds))}: expected numbers from 0 to {2**32 - 1}")
    if arguments.threads < 1:
        raise InputError(f"--threads {arguments.threads}: expected at least 1")
    pairs, flags = parse_pairs(arguments.data), parse_flags(arguments.set)
    prepare_json(arguments.json)
    torch.set_num_threads(arguments.threads)
    given = " ".join([f"--minutes {arguments.minutes:g}", *(["--set", *arguments.set] if arguments.set else [])])
    print(f"{machine()}, {counted(arguments.threads, 'thread')}, {given}", flush=True)
    setup = {"machine": machine(), "threads": arguments.threads, "minutes": arguments.minutes, "flags": flags}
    rows = []
    for (train, test), seed in itertools.product(pairs, arguments.seeds):
        rows.append(measure(train, test, arguments.minutes, seed, flags))
        print(table(rows), flush=True)
        write_json(arguments.json, {**setup, "rows": rows})


if __name__ == "__main__":
    sys.exit(exit_code(main))
