"""Adds the checkpoint of the installed version: `python test/checkpoints/make_checkpoint.py`, once before each release.

It writes `<version>.ckpt`, of a detector that is as small as one can be, and `<version>.json` with what that detector
computes now, which later versions have to compute too. Files of earlier versions are never written again.
"""

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from configuration import DEFAULT_HYPERPARAMETERS  # noqa: E402

from keypoint_detection import KeypointDetector, fit  # noqa: E402
from keypoint_detection.models.checkpoint_file import library_version  # noqa: E402

FLAGS = DEFAULT_HYPERPARAMETERS | {
    "backbone_type": "DilatedCnn", "n_channels": 4, "dilations": [1, 2], "n_downsampling_layers": None,
    "n_resnet_blocks": None, "heatmap_stride": 4, "max_epochs": 3, "wandb_mode": "disabled", "max_pictures": 0,
}  # fmt: skip


def picture() -> torch.Tensor:
    """An image `(1, 3, 24, 20)` in [0, 1] that no random generator is needed for."""
    y, x, c = torch.arange(24)[:, None], torch.arange(20), torch.arange(3)[:, None, None]
    return ((7 * x + 13 * y + 29 * c + x * y) % 32 / 31)[None].float()


def main() -> None:
    """Writes both files."""
    target = FOLDER / f"{library_version()}.ckpt"
    if target.exists():
        sys.exit(f"{target} exists: a released checkpoint stays as it is")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(fit(**FLAGS, run_dir=folder).best_checkpoint, target)
    with torch.no_grad():
        heatmaps = KeypointDetector.load_from_checkpoint(target).eval()(picture())
    record = {"channels": ["corner_keypoints", "flap_corner_keypoints"], "logits": heatmaps.tolist()}
    target.with_suffix(".json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
