"""Runs an ONNX file written by `keypoint-detection export`, with onnxruntime instead of torch.

C channels, H W image, N keypoints.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from keypoint_detection.errors import InputError
from keypoint_detection.score_thresholds import rounding_of
from keypoint_detection.wording import first_line

logger = logging.getLogger(__name__)

METADATA_KEY = "keypoint_detection"


class OnnxNetwork:
    """An exported detector; see `predict.Network`.

    Args:
        path: The file.
        device: Where onnxruntime runs it: `cpu`, `cuda` or `cuda:1`, or `auto` for CUDA if available. If onnxruntime
            does not offer the device, it runs on the CPU, with a warning.
        threads: Threads of onnxruntime, 0 for as many as there are cores.

    Raises:
        InputError: If the extra `export` is not installed, the file is not an exported detector, or the device is
            unknown.
    """

    def __init__(self, path: str | PathLike[str], device: str = "auto", threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f'{path} needs onnxruntime: pip install "keypoint_detection[export]"') from error
        try:
            problem = "" if Path(path).is_file() else "is a folder" if Path(path).is_dir() else "does not exist"
        except OSError as error:  # e.g. a name that is too long
            problem = f"cannot be read ({error.strerror})"
        if problem:
            raise InputError(f"model {path} {problem}, expected a file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that keep spinning after a run would take the cores from torch and from reading images.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers = _providers(device, onnxruntime.get_available_providers())
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
            metadata = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA_KEY])
            self.channel_names: list[str] = list(metadata["channel_names"])
            self.image_size: list[int] | None = metadata.get("image_size")
            self._count = max(metadata["max_keypoints"])
            self.evaluation: dict[str, Any] = dict(metadata.get("evaluation", {}))  # older files have none
            thresholds = list(metadata["score_thresholds"])
        except Exception as error:  # onnxruntime's errors have no common base
            raise InputError(
                f"model {path} is not an ONNX file written by `keypoint-detection export`: {first_line(error)}"
            ) from error
        self.score_thresholds: list[float] = [math.nan if value is None else value for value in thresholds]
        self.rounding = rounding_of(self.session.get_providers()[0].removesuffix("ExecutionProvider").lower())
        self._lowest = np.zeros(len(self.channel_names), dtype=np.float32)
        self._arguments = Path(path).absolute(), device, threads

    def __reduce__(self) -> tuple[type[OnnxNetwork], tuple[Path, str, int]]:
        """Sends only the arguments to another process, because a session of onnxruntime cannot be pickled."""
        return OnnxNetwork, self._arguments

    def detect(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `predict.Network`. Images are processed one at a time: on a CPU, batches are no faster."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"image": np.ascontiguousarray(image)[None], "score_thresholds": self._lowest}
        (rows,) = self.session.run(["keypoints"], inputs)
        return split_channels(rows, len(self.channel_names), self._count)


def split_channels(rows: np.ndarray, channels: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the output of an exported detector by channel.

    Args:
        rows: `(N, 4)` channel, x, y and score.
        channels: C.
        count: M, the maximum number of keypoints of a channel.

    Returns:
        `(C, M, 2)` xy, NaN for none, and `(C, M)` scores.
    """
    xy = np.full((channels, count, 2), np.nan, dtype=np.float32)
    scores = np.zeros((channels, count), dtype=np.float32)
    for channel in range(channels):
        own = rows[rows[:, 0] == channel]
        xy[channel, : len(own)], scores[channel, : len(own)] = own[:, 1:3], own[:, 3]
    return xy, scores


def _providers(device: str, offered: Sequence[str]) -> list[str | tuple[str, dict[str, int]]]:
    """The providers that onnxruntime runs on, the best first."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps", "xpu") or not (number or "0").isdigit():
        raise InputError(f"--device {device}: expected cpu, cuda or auto")
    if kind in ("auto", "cuda") and "CUDAExecutionProvider" in offered:
        return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]
    if kind not in ("auto", "cpu"):
        logger.warning("onnxruntime offers no %s here, so the network runs on the cpu", kind)
    return ["CPUExecutionProvider"]
