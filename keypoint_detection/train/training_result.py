"""The result of a training run: the detector, its metrics, and what to tell the user."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from keypoint_detection.log_names import log_name
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.train.run_folder import CURVES_FILE, REPORT_FILE
from keypoint_detection.wording import cells, padded


@dataclass
class TrainingResult:
    """The result of a training run.

    Attributes:
        detector: The detector with the best weights, in evaluation mode, on the CPU.
        run_dir: Folder of the run.
        best_checkpoint: The latest checkpoint whose mean AP on the validation set is within a hundredth of the highest;
            `last.ckpt` if no evaluation saw a true keypoint.
        metrics: Losses and metrics of the best checkpoint by name: `best/...` on the validation set, `test/...` on the
            test set, if there is one.
        threshold_distances: Distances at which average precision was computed.
        threshold_unit: Unit of these and of the errors: `pixel`, or `image` for fractions of the image's diagonal.
        origin: Which epoch `best.ckpt` is from, as text; empty if the checkpoint is `last.ckpt`.
    """

    detector: KeypointDetector = field(repr=False)
    run_dir: Path
    best_checkpoint: Path
    metrics: dict[str, float] = field(repr=False)
    threshold_distances: list[float]
    threshold_unit: str
    origin: str = ""

    def table(self) -> str:
        """Average precision per channel and threshold distance on each evaluated set, as text."""
        sets = {"best": "validation set", "test": "test set"}
        stages = [stage for stage in sets if f"{stage}/meanAP" in self.metrics]
        checkpoint = f"{self.best_checkpoint.stem} checkpoint"
        return "\n\n".join(self._table(stage, f"{sets[stage]}, {checkpoint}") for stage in stages)

    def where_to_look(self) -> str:
        """The files of the run to open and to use, as text."""
        report = self.run_dir / REPORT_FILE
        in_browser = f"{report} in a browser, " if report.exists() else ""
        profiles = [f"            {path}" for path in sorted(self.run_dir.glob("*profile*.txt"))]
        traces = sorted(self.run_dir.glob("*profile*.trace.json"))
        profiles += [f"            {path} (opens in ui.perfetto.dev)" for path in traces]
        return "\n".join(
            [
                f"run folder: {self.run_dir}",
                f"  look at   {in_browser}{self.run_dir / CURVES_FILE}",
                f"            and the pictures in {self.run_dir / 'pictures'}",
                *profiles,
                f"  use       {self.best_checkpoint}",
            ]
        )

    def _table(self, stage: str, title: str) -> str:
        names = list(self.detector.hparams.keypoint_channels)
        width = max(map(cells, [*names, "mean"]))
        columns = "".join(f"{f'AP@{distance:g}':>8}" for distance in self.threshold_distances)
        header = f"{'':{width}}{columns}{'median error':>15}"
        in_pixels = self.threshold_unit == "pixel"
        unit, digits = ("px", 2) if in_pixels else ("", 4)
        where = "at pixel distances" if in_pixels else "at fractions of the image's diagonal"
        farthest = f"{max(self.threshold_distances):g} {unit}".strip()
        mean = self.metrics[f"{stage}/meanAP"]
        of_all = "" if math.isnan(mean) else f", mean AP {mean:.3f}"
        legend = f"Average precision {where}, and median error of detections within {farthest}: {title}{of_all}"
        rows = [legend, header, "-" * len(header)]
        for name in [*names, None]:
            kind = "meanAP" if name is None else "AP"
            keys = (log_name(kind, name, distance, stage) for distance in self.threshold_distances)
            values = [self.metrics.get(key, math.nan) for key in keys]
            precisions = "".join(f"{'-' if math.isnan(value) else f'{value:.3f}':>8}" for value in values)
            distance = self.metrics.get(log_name("median_distance", name, stage=stage), math.nan)
            error = "-" if math.isnan(distance) else f"{distance:.{digits}f} {unit}".strip()
            rows.append(f"{padded('mean' if name is None else name, width)}{precisions}{error:>15}")
        rows.insert(-1, "-" * len(header))
        return "\n".join(rows)
