"""Metrics, exact across processes. To add one, write a subclass of `KeypointMetric` and a line in `METRICS`."""

from __future__ import annotations

from keypoint_detection.metrics.average_precision import AveragePrecision, KeypointAveragePrecision
from keypoint_detection.metrics.base import KeypointMetric, Matches
from keypoint_detection.metrics.localization import Localization

METRICS: dict[str, type[KeypointMetric]] = {
    "average_precision": AveragePrecision,
    "localization": Localization,
}

__all__ = [
    "METRICS",
    "AveragePrecision",
    "KeypointAveragePrecision",
    "KeypointMetric",
    "Localization",
    "Matches",
]
