"""What the package offers by its own name, without importing it before it is asked for."""

import importlib
import subprocess
import sys

import pytest

import keypoint_detection
from keypoint_detection.version import library_version

OFFERED = {
    "KeypointAveragePrecision": "keypoint_detection.metrics.average_precision",
    "KeypointDetector": "keypoint_detection.models.detector",
    "KeypointPredictor": "keypoint_detection.predict",
    "KeypointsDataModule": "keypoint_detection.data.datamodule",
    "KeypointsDataset": "keypoint_detection.data.dataset",
    "evaluate": "keypoint_detection.evaluation.command",
    "fit": "keypoint_detection.train.train",
}


def test_all_that_is_offered_is_listed():
    assert set(keypoint_detection.__all__) == {*OFFERED, "heatmaps", "__version__"}
    assert set(keypoint_detection.__all__) <= set(dir(keypoint_detection))
    assert keypoint_detection.__version__ == library_version()


@pytest.mark.parametrize("name", OFFERED)
def test_a_name_is_what_its_module_has_and_not_that_of_a_module(name):
    assert getattr(keypoint_detection, name) is getattr(importlib.import_module(OFFERED[name]), name)
    # Whose import would put the module in the place of what is offered.
    assert importlib.util.find_spec(f"keypoint_detection.{name}") is None


def test_nothing_is_imported_before_it_is_asked_for():
    code = (
        "import sys, keypoint_detection; dir(keypoint_detection); print([name for name in sys.modules "
        "if name in ('torch', 'numpy') or name.startswith('keypoint_detection.')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Predictor'"):
        keypoint_detection.Predictor  # noqa: B018  to look it up is what fails
