"""The smallest sweep, and the hyperparameters that the tests train with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEST_DATASET = Path(__file__).parent / "test_dataset"

DEFAULT_HYPERPARAMETERS: dict[str, Any] = {
    "keypoint_channels": "corner_keypoints flap_corner_keypoints",
    "keypoint_channel_max_keypoints": "-1 -1",
    "json_dataset_path": str(TEST_DATASET / "annotations.json"),
    "image_dataset_path": str(TEST_DATASET),
    "batch_size": 2,
    "validation_split_ratio": 0.25,
    "num_workers": 0,
    "seed": 2022,
    "wandb_project": "test-project",
    "wandb_mode": "offline",
    "backbone_type": "Unet",
    "n_channels": 4,
    "n_downsampling_layers": 2,
    "n_resnet_blocks": 1,
    "heatmap_sigma": 4.0,
    "learning_rate": 1e-3,
    "maximal_gt_keypoint_pixel_distances": "2 4",
    "ap_epoch_start": 1,
    "ap_epoch_freq": 1,
    "max_epochs": 2,
    "accelerator": "cpu",
}

DEFAULT_SWEEP: dict[str, Any] = {
    "program": "train.py",
    "method": "random",
    "metric": {"name": "validation/meanAP", "goal": "maximize"},
    "parameters": {
        "json_dataset_path": {"value": "../../test/test_dataset/annotations.json"},
        "image_dataset_path": {"value": "../../test/test_dataset"},
        "keypoint_channels": {"value": "corner_keypoints flap_corner_keypoints"},
        "keypoint_channel_max_keypoints": {"value": "-1 -1"},
        "max_epochs": {"value": 2},
        "batch_size": {"values": [1, 2]},
        "learning_rate": {"values": [0.001, 0.003]},
        "n_channels": {"values": [4, 8]},
    },
}
