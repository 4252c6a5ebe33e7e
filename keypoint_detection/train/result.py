"""What a training returns, and the table of it that a user reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from keypoint_detection.models.detector import KeypointDetector


@dataclass
class TrainingResult:
    """What a training returns.

    Attributes:
        detector: The detector with the best weights.
        run_dir: Folder of the run.
        best_checkpoint: Checkpoint with the highest mean AP on the validation set.
        metrics: Losses and metrics by name, as they were logged for the best checkpoint.
        threshold_distances: Distances at which the average precision was computed.
    """

    detector: KeypointDetector
    run_dir: Path
    best_checkpoint: Path
    metrics: dict[str, float]
    threshold_distances: list[float]

    def table(self) -> str:
        """The average precision per channel and threshold distance of each evaluated set, as text."""
        stages = [stage for stage in ("validation", "test") if f"{stage}/meanAP" in self.metrics]
        return "\n\n".join(self._table(stage) for stage in stages)

    def _table(self, stage: str) -> str:
        names = list(self.detector.hparams.keypoint_channels)
        columns = [f"{distance:g}" for distance in self.threshold_distances]
        width = max(len(name) for name in [*names, "channel", "all channels"])
        rows = [f"{stage} AP at a distance of".ljust(width)]
        header = f"{'channel':{width}}" + "".join(f"{column:>8}" for column in columns) + f"{'median error':>15}"
        rows += [header, "-" * len(header)]
        for name in names:
            values = [self.metrics.get(f"{stage}/AP/{name}/d={column}", math.nan) for column in columns]
            rows.append(self._row(name, width, values, self.metrics.get(f"{stage}/median_distance/{name}", math.nan)))
        values = [self.metrics.get(f"{stage}/meanAP/d={column}", math.nan) for column in columns]
        rows += ["-" * len(header)]
        rows.append(self._row("all channels", width, values, self.metrics.get(f"{stage}/median_distance", math.nan)))
        rows.append(f"mean AP {self.metrics[f'{stage}/meanAP']:.3f}")
        return "\n".join(rows)

    @staticmethod
    def _row(name: str, width: int, values: list[float], distance: float) -> str:
        cells = "".join(f"{'-' if math.isnan(value) else f'{value:.3f}':>8}" for value in values)
        return f"{name:{width}}{cells}{'-' if math.isnan(distance) else f'{distance:.2f}':>15}"
