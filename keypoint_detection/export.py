"""`keypoint-detection export`: a checkpoint as one ONNX file that goes from bytes of an image to keypoints.

C channels, H W image, N keypoints.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from keypoint_detection.errors import InputError
from keypoint_detection.flags import call, parser_for
from keypoint_detection.predict import TorchNetwork

logger = logging.getLogger(__name__)

FORMATS = ("onnx",)
# Resizing, reductions while scattering and much else of the graph came with this version of the operators.
LOWEST_OPSET = 18


def export(checkpoint: str, output: str, format: str = "onnx", half: bool = False, opset: int = LOWEST_OPSET) -> Path:
    """Write a checkpoint as one ONNX file from image to keypoints that needs no Python.

    The file takes `image`, `(1, H, W, 3)` uint8 RGB of any size, and gives `keypoints`, `(N, 4)` float32: the number of
    the channel, x, y in pixels of the image, and the score. Channels come in order, and the keypoints of each in
    descending order of score. A second input, `score_thresholds` `(C,)`, may be left out: it is then the checkpoint's.
    The file is compared with PyTorch on images of several sizes and removed if they differ.

    Args:
        checkpoint: The checkpoint that a training wrote.
        output: The file to write, such as model.onnx.
        format: What to write: onnx.
        half: Store weights with half the bits. They are computed with as before.
        opset: Version of ONNX's operators, at least 18.

    Returns:
        The file.

    Raises:
        InputError: If a value is not usable, the extra `export` is not installed, or the file's keypoints differ from
            those of PyTorch.
    """
    if format not in FORMATS:
        raise InputError(f"format: unknown {format!r}, expected one of {', '.join(FORMATS)}")
    if opset < LOWEST_OPSET:
        raise InputError(f"opset is {opset}, expected at least {LOWEST_OPSET}")
    if not Path(output).parent.is_dir():
        raise InputError(f"output {output}: the folder does not exist")
    network = TorchNetwork(checkpoint, device="cpu")
    if Path(output).suffix != ".onnx":
        raise InputError(f"output {output}: expected a name that ends with .onnx")
    _require_onnx()
    from keypoint_detection.export_onnx import write_onnx

    return write_onnx(network, Path(output), half, opset)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f'{error}: pip install "keypoint_detection[export]"') from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports what a command line asks for.

    Args:
        arguments: The flags; those of the process where none are given.

    Returns:
        The exit code.
    """
    parser = parser_for(export, "keypoint-detection export")
    path = call(export, parser.parse_args(list(sys.argv[1:] if arguments is None else arguments)).as_dict())
    logger.info("wrote %s, %.1f MB", path, path.stat().st_size / 1e6)
    return 0
