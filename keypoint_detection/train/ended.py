"""The result of a training run that had already ended, from the files in its folder."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keypoint_detection.metrics.distances import parse_distances
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.train.metrics_file import STEP
from keypoint_detection.train.resume import Resumed, plain_flag
from keypoint_detection.train.run_folder import CURVES_FILE, REPORT_FILE
from keypoint_detection.train.training_result import TrainingResult

logger = logging.getLogger(__name__)

# Flags that say where a run is, not what it does.
PLACES = ("config", "run_dir", "resume")


def find_result(resumed: Resumed, config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> TrainingResult | None:
    """Finds the result of a run that has ended, so that nothing is computed or written again.

    Args:
        resumed: The run.
        config: A value for every flag, with `auto` replaced.
        fingerprints: Fingerprint of each data set, by name.

    Returns:
        The result; None if the run has not ended, if one of its files is missing, or if the flags or the labels differ
        from those that it ended with.
    """
    latest, folder, best = resumed.latest_record, resumed.folder, resumed.folder.checkpoints / "best.ckpt"
    files = (best, folder.path / "metrics.csv", folder.path / CURVES_FILE, folder.path / REPORT_FILE)
    if latest.get("ended_after_step") != resumed.step or not all(path.exists() for path in files):
        return None
    asked, had = (
        {name: plain_flag(value) for name, value in flags.items() if name not in PLACES}
        for flags in (config, latest.get("flags", {}))
    )
    if asked != had or fingerprints != latest.get("data"):
        return None
    logger.info(
        "training had already ended, after step %d, and all results are there; to train longer, raise --max_epochs, "
        "--max_steps or --max_time",
        resumed.step,
    )
    unit = config["threshold_unit"]
    distances = parse_distances(config["maximal_gt_keypoint_pixel_distances"], unit)
    detector = KeypointDetector.load_from_checkpoint(best, map_location="cpu").eval()
    metrics = _metrics(folder.path / "metrics.csv", resumed.step)
    return TrainingResult(detector, folder.path, best, metrics, distances, unit, latest["origin"])


def _metrics(path: Path, step: int) -> dict[str, float]:
    """What was measured after training that ended with this step."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row[STEP] == str(step)]
    logged = [(name, value) for row in rows for name, value in row.items() if value]
    return {name: float(value) for name, value in logged if name.startswith(("best/", "test/"))}
