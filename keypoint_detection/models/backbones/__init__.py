"""Backbones by name: images in, features at the stride of the heatmaps out.

To use your own backbone, derive it from `Backbone` and register it: `BACKBONES["Mine"] = Mine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keypoint_detection.models.backbones.base import Backbone
from keypoint_detection.models.backbones.dilated_cnn import DilatedCnn
from keypoint_detection.models.backbones.s3k import S3K
from keypoint_detection.models.backbones.smp import Smp
from keypoint_detection.models.backbones.unet import Unet
from keypoint_detection.models.registry import check_arguments, look_up

__all__ = ["BACKBONES", "S3K", "Backbone", "DilatedCnn", "Smp", "Unet", "build_backbone"]

BACKBONES: dict[str, type[Backbone]] = {
    "Unet": Unet,
    "DilatedCnn": DilatedCnn,
    "S3K": S3K,
    "Smp": Smp,
}


def build_backbone(name: str, heatmap_stride: int, arguments: Mapping[str, Any]) -> Backbone:
    """Build a backbone from the registry.

    Args:
        name: Key of `BACKBONES`.
        heatmap_stride: Pixels of the image per cell of the heatmap.
        arguments: The backbone's own arguments by name.

    Raises:
        InputError: for an unknown name or argument; lists the valid ones.
    """
    backbone = look_up(BACKBONES, name, "backbone_type")
    check_arguments(backbone, arguments, f"backbone_type {name!r}")
    return backbone(heatmap_stride=heatmap_stride, **arguments)
