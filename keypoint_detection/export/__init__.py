"""Exports a checkpoint to one file that turns an image into keypoints: ONNX, or a torch.export program."""

from keypoint_detection.export.command import export

__all__ = ["export"]
