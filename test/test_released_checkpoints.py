"""Checkpoints of every released version load in this one, and compute what they computed then."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from keypoint_detection import KeypointDetector
from keypoint_detection.checkpoint import describe
from keypoint_detection.predict import KeypointPredictor

FOLDER = Path(__file__).parent / "checkpoints"
sys.path.append(str(FOLDER))

from make_checkpoint import picture  # noqa: E402

CHECKPOINTS = sorted(FOLDER.glob("*.ckpt"))


def test_every_version_of_the_changelog_has_its_checkpoint():
    changelog = (FOLDER.parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = {path.stem.split("-")[0] for path in CHECKPOINTS}
    assert set(re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)) == versions


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_it_computes_what_it_computed_then(path):
    record = json.loads(path.with_suffix(".json").read_text())
    detector = KeypointDetector.load_from_checkpoint(path).eval()
    with torch.no_grad():
        logits = detector(picture())
    torch.testing.assert_close(logits, torch.tensor(record["logits"]), atol=1e-4, rtol=1e-4)
    assert describe(path)["version"] == path.stem.split("-")[0]
    assert list(detector.hparams.keypoint_channels) == record["channels"]
    image = (picture()[0].permute(1, 2, 0) * 255).byte().numpy()
    assert list(KeypointPredictor(path, device="cpu")(image)) == record["channels"]


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_it_is_tiny(path):
    assert path.stat().st_size < 100_000
