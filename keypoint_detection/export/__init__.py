"""A checkpoint as one file that goes from an image to keypoints: ONNX, or a program of torch.export."""

from keypoint_detection.export.command import export

__all__ = ["export"]
