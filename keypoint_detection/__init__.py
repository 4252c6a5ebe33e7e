"""Train, watch and use detectors of 2D keypoints: any number of keypoints of each class in an image, in no order."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keypoint_detection import heatmaps
    from keypoint_detection.data.datamodule import KeypointsDataModule
    from keypoint_detection.data.dataset import KeypointsDataset
    from keypoint_detection.evaluation.command import evaluate
    from keypoint_detection.metrics.average_precision import KeypointAveragePrecision
    from keypoint_detection.models.detector import KeypointDetector
    from keypoint_detection.predict import KeypointPredictor
    from keypoint_detection.train.train import fit

    __version__: str

__all__ = [
    "KeypointAveragePrecision",
    "KeypointDetector",
    "KeypointPredictor",
    "KeypointsDataModule",
    "KeypointsDataset",
    "__version__",
    "evaluate",
    "fit",
    "heatmaps",
]

# No name here may be that of a module or folder of this package, such as `export`: importing the module would hide it.
_MODULES = {
    "KeypointAveragePrecision": "keypoint_detection.metrics.average_precision",
    "KeypointDetector": "keypoint_detection.models.detector",
    "KeypointPredictor": "keypoint_detection.predict",
    "KeypointsDataModule": "keypoint_detection.data.datamodule",
    "KeypointsDataset": "keypoint_detection.data.dataset",
    "evaluate": "keypoint_detection.evaluation.command",
    "fit": "keypoint_detection.train.train",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used, so that a command's `-h` does not wait for Lightning."""
    if name == "heatmaps":
        return importlib.import_module("keypoint_detection.heatmaps")
    if name == "__version__":
        return importlib.import_module("keypoint_detection.version").library_version()
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
