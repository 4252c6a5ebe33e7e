"""How good a detector the defaults make in a few minutes, from random weights, on data sets of your own.

`python benchmarks/accuracy.py FOLDER/train.json:FOLDER/test.json ... --minutes 5` trains on each pair of files with
nothing but the paths and the time, and measures the best checkpoint on the test file. Errors and PCK are those of the
top detection of each channel that has one keypoint in an image; without a detection the error is the image's diagonal.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from keypoint_detection import fit
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.images import load_image
from keypoint_detection.predict import KeypointPredictor

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


class Top(NamedTuple):
    """The top detection of a channel that has one keypoint in an image.

    Attributes:
        image: index of the image.
        channel: name.
        truth: `(2,)` xy in pixels.
        found: `(2,)` xy in pixels, NaN without a detection.
        diagonal: of the image, in pixels.
    """

    image: int
    channel: str
    truth: np.ndarray
    found: np.ndarray
    diagonal: float

    @property
    def error(self) -> float:
        """Distance in pixels; the diagonal without a detection."""
        return self.diagonal if np.isnan(self.found).any() else float(np.hypot(*(self.found - self.truth)))


def top_detections(checkpoint: Path, json_path: Path) -> Iterator[Top]:
    """The top detections of all channels that have one keypoint in an image, over all images."""
    predictor = KeypointPredictor(checkpoint, score_threshold=0.0, max_keypoints=1)
    annotations = read_annotations(json_path, json_path.parent)
    for index in range(len(annotations)):
        image = load_image(annotations.path(index))
        height, width = image.shape[:2]
        prediction = predictor(image)
        for name, truth in zip(annotations.channel_names, annotations.keypoints(index, width, height), strict=True):
            if len(truth) == 1:
                found = np.append(prediction[name].xy, [[np.nan, np.nan]], axis=0)[0]
                yield Top(index, name, truth[0], found, float(np.hypot(height, width)))


def top_errors(checkpoint: Path, json_path: Path) -> np.ndarray:
    """Distances in pixels of the top detections to the only keypoint of their channel, over all images."""
    return np.array([top.error for top in top_detections(checkpoint, json_path)])


def measure(train: Path, test: Path, minutes: float, seed: int, flags: dict[str, Any]) -> dict[str, Any]:
    """Trains and measures once."""
    seconds = round(60 * minutes)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            json_dataset_path=str(train),
            json_test_dataset_path=str(test),
            max_time=f"00:{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
            maximal_gt_keypoint_pixel_distances="2 4 8",
            seed=seed,
            run_dir=folder,
            wandb_mode="disabled",
            **flags,
        )
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
    # An epoch ends with a smaller batch where the images do not divide.
    row["images/s"] = steps * images / -(-images // batch_size) / seconds
    row["M parameters"] = sum(p.numel() for p in result.detector.parameters()) / 1e6
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = [f"{row[c]:.3f}" if isinstance(row.get(c), float) else str(row.get(c, "-")) for c in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Trains on all pairs of files with all seeds, and prints a table that grows row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="train.json:test.json")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--set", nargs="*", default=[], metavar="FLAG=VALUE", help="flags to train with, for ablations")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    flags = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in arguments.set)}
    rows = []
    for pair in arguments.data:
        train, test = (Path(path) for path in pair.split(":"))
        for seed in arguments.seeds:
            rows.append(measure(train, test, arguments.minutes, seed, flags))
            print(table(rows), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
