"""The numbers that say how good a detector is on a labelled set: as text, as JSON and as a report.

C channels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from keypoint_detection.calibration import Calibration
from keypoint_detection.evaluation.images import EvaluatedImages
from keypoint_detection.files import finite, write_atomic
from keypoint_detection.metrics import Matches
from keypoint_detection.metrics.average_precision import mean_of_defined
from keypoint_detection.metrics.error_kinds import ERROR_KINDS, ErrorTaxonomy, error_taxonomy
from keypoint_detection.report import ReportData, ReportImage, run_information
from keypoint_detection.report.measured import pad
from keypoint_detection.report.statistics import channel_numbers, mean_numbers
from keypoint_detection.wording import cells, counted, padded


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        sources: What was evaluated: the checkpoint, the labelled file and the folder of images.
        channel_names: Names of the C channels.
        threshold_distances: Distances for average precision.
        threshold_unit: Unit of all distances and localisation errors: `pixel`, or `image` for fractions of the image's
            diagonal.
        distance: The threshold distance at which errors, precision and recall are measured.
        score_thresholds: `(C,)` scores from which a detection counts.
        metrics: All metrics by the names that training logs them under, without `validation/`.
        channels: For each channel, by name: the number of `truths`; `average_precision`, one for each distance;
            `median`, `mean` and `p90` of the localisation error; `threshold`, with `recall`, `precision` and `f1` at
            it; `best_threshold`, with `best_recall`, `best_precision` and `best_f1`. NaN where undefined.
        mean: The same values, averaged over the channels for which they are defined; `truths` is the sum.
        errors: Errors by kind.
        images: True keypoints and detections of each image, by its index among the evaluated images.
        matches: All detections, matched.
        calibration: Thresholds with a promise, if they were asked for.
    """

    sources: dict[str, str]
    channel_names: list[str]
    threshold_distances: list[float]
    threshold_unit: str
    distance: float
    score_thresholds: list[float]
    metrics: dict[str, float] = field(repr=False)
    channels: dict[str, dict[str, Any]] = field(repr=False)
    mean: dict[str, Any]
    errors: ErrorTaxonomy = field(repr=False)
    images: dict[int, ReportImage] = field(repr=False)
    matches: Matches = field(repr=False)
    calibration: Calibration | None = None

    def table(self) -> str:
        """All numbers, as text."""
        parts = [self._precision_table(), self._threshold_table(), self._error_table()]
        return "\n\n".join([*parts, *([self.calibration.table()] if self.calibration else [])])

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values, None where undefined.

        Returns:
            `sources`, `images` (how many), `distances`, `unit`, `distance`; `channels` and `mean` as described above,
            with `average_precision` by distance; `errors`: for each kind, `count` and `average_precision_won_back`,
            overall and by channel; `metrics`; `calibration`, None unless thresholds with a promise were asked for.
        """
        gains, counts = self.errors.gains.tolist(), self.errors.counts.tolist()
        errors = {
            kind: {
                "count": sum(counts[row]),
                "average_precision_won_back": mean_of_defined(gains[row]),
                "channels": {
                    name: {"count": counts[row][c], "average_precision_won_back": gains[row][c]}
                    for c, name in enumerate(self.channel_names)
                },
            }
            for row, kind in enumerate(ERROR_KINDS)
        }
        values = {
            "sources": self.sources,
            "images": len(self.images),
            "distances": self.threshold_distances,
            "unit": self.threshold_unit,
            "distance": self.distance,
            "mean": self._by_distance(self.mean),
            "channels": {name: self._by_distance(numbers) for name, numbers in self.channels.items()},
            "errors": errors,
            "metrics": self.metrics,
            "calibration": self.calibration.record() if self.calibration else None,
        }
        return finite(values)

    def save(self, path: str | Path) -> None:
        """Writes `to_dict` to a file, as a whole or not at all."""
        write_atomic(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    def report_data(self, title: str) -> ReportData:
        """What the report shows."""
        return ReportData(
            title=title,
            channel_names=self.channel_names,
            threshold_distances=self.threshold_distances,
            images=list(self.images.values()),
            score_thresholds=self.score_thresholds,
            distance=self.distance,
            metrics=self.metrics,
            run_info=run_information(**self.sources),
        )

    def _by_distance(self, numbers: dict[str, Any]) -> dict[str, Any]:
        columns = [f"{distance:g}" for distance in self.threshold_distances]
        return {**numbers, "average_precision": dict(zip(columns, numbers["average_precision"], strict=True))}

    def _within(self) -> str:
        unit = "px" if self.threshold_unit == "pixel" else "of the image's diagonal"
        return f"within {self.distance:g} {unit}"

    def _rows(self) -> list[tuple[str, dict[str, Any]]]:
        return [*self.channels.items(), ("mean", self.mean)]

    def _precision_table(self) -> str:
        header = ["channel", "true", *(f"AP@{d:g}" for d in self.threshold_distances), "median", "mean", "90 %"]
        truths = [*(str(row["truths"]) for row in self.channels.values()), ""]  # their sum would not be a mean
        digits = 2 if self.threshold_unit == "pixel" else 4
        rows = [
            [name, number, *map(_number, row["average_precision"])]
            + [_number(row[key], digits) for key in ("median", "mean", "p90")]
            for (name, row), number in zip(self._rows(), truths, strict=True)
        ]
        seen = f"{counted(len(self.images), 'image')} with {counted(self.mean['truths'], 'true keypoint')}"
        unit = "px" if self.threshold_unit == "pixel" else "diagonals"
        title = f"{seen}: AP and localisation error in {unit} {self._within()}"
        return _table(title, header, rows)

    def _threshold_table(self) -> str:
        header = ["channel", "threshold", "recall", "precision", "F1", "best at", "recall", "precision", "F1"]
        keys = ["threshold", "recall", "precision", "f1"]
        keys += ["best_threshold", "best_recall", "best_precision", "best_f1"]
        rows = [[name, *(_number(row[key]) for key in keys)] for name, row in self._rows()]
        return _table(f"At the score threshold, and at that of the best F1, {self._within()}", header, rows)

    def _error_table(self) -> str:
        gains, counts = self.errors.gains.tolist(), self.errors.counts.tolist()
        rows = [
            [kind.replace("_", " "), str(sum(counts[row])), _number(mean_of_defined(gains[row]))]
            for row, kind in enumerate(ERROR_KINDS)
        ]
        title = f"Errors {self._within()}: count at the score threshold, AP gained by fixing those at all scores"
        return _table(title, ["error", "count", "AP gain"], rows)


def summarise(
    evaluated: EvaluatedImages, distance: float, score_thresholds: Sequence[float], sources: dict[str, str]
) -> Evaluation:
    """Computes all numbers from what a detector found.

    Args:
        evaluated: All images of a labelled set.
        distance: Threshold distance for errors, precision and recall, one of those of `evaluated`.
        score_thresholds: `(C,)` scores from which a detection counts.
        sources: See `Evaluation`.
    """
    matches, metrics = evaluated.matches(), evaluated.values()
    names = list(evaluated.annotations.channel_names)
    position = evaluated.threshold_distances.index(distance)
    rows = [channel_numbers(matches, c, position, float(threshold)) for c, threshold in enumerate(score_thresholds)]
    images = dict(sorted(evaluated.images.items()))
    points = pad(list(images.values()), len(names))
    if evaluated.threshold_unit == "image":
        sizes = [math.hypot(image.width, image.height) for image in images.values()]
        diagonals = torch.tensor(sizes, dtype=torch.float64)[:, None, None, None]
        points = points._replace(xy=points.xy / diagonals, truths=points.truths / diagonals)
    return Evaluation(
        sources=sources,
        channel_names=names,
        threshold_distances=evaluated.threshold_distances,
        threshold_unit=evaluated.threshold_unit,
        distance=distance,
        score_thresholds=[float(threshold) for threshold in score_thresholds],
        metrics=metrics,
        channels=dict(zip(names, rows, strict=True)),
        mean=mean_numbers(rows),
        errors=error_taxonomy(*points, distance, torch.tensor(score_thresholds, dtype=torch.float64)),
        images=images,
        matches=matches,
    )


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """Aligns columns right, except the first; adds a line before the row of means, and an explanation of dashes."""
    first, *widths = [max(map(cells, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join([padded(name, first), *map(str.rjust, numbers, widths)]) for name, *numbers in [header, *rows]]
    rule = "-" * len(lines[0])
    if rows[-1][0] == "mean":
        lines.insert(-1, rule)
        lines += ["-: undefined, and left out of the mean"] if any("-" in row for row in rows) else []
    return "\n".join([title, lines[0], rule, *lines[1:]])
