"""Train, watch and use detectors of 2D keypoints: any number of keypoints of each class in an image, in no order."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keypoint_detection import heatmaps
    from keypoint_detection.data.datamodule import KeypointsDataModule
    from keypoint_detection.data.dataset import KeypointsDataset
    from keypoint_detection.metrics.average_precision import KeypointAveragePrecision
    from keypoint_detection.models.detector import KeypointDetector
    from keypoint_detection.train.train import fit

__all__ = [
    "KeypointAveragePrecision",
    "KeypointDetector",
    "KeypointsDataModule",
    "KeypointsDataset",
    "fit",
    "heatmaps",
]

_MODULES = {
    "KeypointAveragePrecision": "keypoint_detection.metrics.average_precision",
    "KeypointDetector": "keypoint_detection.models.detector",
    "KeypointsDataModule": "keypoint_detection.data.datamodule",
    "KeypointsDataset": "keypoint_detection.data.dataset",
    "fit": "keypoint_detection.train.train",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, when it is asked for: a command's `-h` need not wait for Lightning."""
    if name == "heatmaps":
        return importlib.import_module("keypoint_detection.heatmaps")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
