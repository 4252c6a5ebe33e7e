"""Adds checkpoints of the installed version: `python test/checkpoints/make_checkpoint.py`, once before each release.

For each of these backbones it writes `<version>-<backbone>.ckpt`, of a detector that is as small as one can be, and a
`.json` beside it with what that detector computes now, which later versions have to compute too. Files that are there
are never written again.
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
from keypoint_detection.version import library_version  # noqa: E402

FLAGS = DEFAULT_HYPERPARAMETERS | {
    "n_channels": 4, "n_downsampling_layers": None, "n_resnet_blocks": None, "heatmap_stride": 4, "max_epochs": 3,
    "wandb_mode": "disabled", "max_pictures": 0,
}  # fmt: skip
BACKBONES = {
    "DilatedCnn": {"dilations": [1, 2]},
    "Unet": {"n_channels_out": 8, "heatmap_stride": 2, "n_downsampling_layers": 2, "n_resnet_blocks": 1},
}


def picture() -> torch.Tensor:
    """An image `(1, 3, 24, 20)` in [0, 1] that no random generator is needed for."""
    y, x, c = torch.arange(24)[:, None], torch.arange(20), torch.arange(3)[:, None, None]
    return ((7 * x + 13 * y + 29 * c + x * y) % 32 / 31)[None].float()


def main() -> None:
    """Writes what is not there yet."""
    for backbone, flags in BACKBONES.items():
        target = FOLDER / f"{library_version()}-{backbone}.ckpt"
        if target.exists():
            logging.info("%s exists: a checkpoint stays as it is", target)
        else:
            write(target, {**FLAGS, "backbone_type": backbone, **flags})


def write(target: Path, flags: dict[str, object]) -> None:
    """Trains for a moment and writes the checkpoint and what its detector computes."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(fit(**flags, run_dir=folder).best_checkpoint, target)
    with torch.no_grad():
        heatmaps = KeypointDetector.load_from_checkpoint(target).eval()(picture())
    record = {"channels": ["corner_keypoints", "flap_corner_keypoints"], "logits": heatmaps.tolist()}
    target.with_suffix(".json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
