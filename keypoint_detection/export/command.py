"""`keypoint-detection export`: writes a checkpoint as one file that turns the bytes of an image into keypoints.

C channels, H W image, N keypoints.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from keypoint_detection.errors import InputError
from keypoint_detection.files import prepare_file
from keypoint_detection.flags import call, parser_for
from keypoint_detection.predict import TorchNetwork

logger = logging.getLogger(__name__)

# The first version of the operators with resizing, scattering with a reduction, and others that the graph needs.
LOWEST_OPSET = 18


def export(checkpoint: str, output: str, half: bool = False, opset: int = LOWEST_OPSET) -> Path:
    """Export a checkpoint to one file that turns an image into keypoints: ONNX, or a torch.export program.

    The file takes `image`, `(1, H, W, 3)` uint8 RGB of any size, and gives `keypoints`, `(N, 4)` float32: the number of
    the channel, x, y in pixels of the image, and the score. Channels come in order, and the keypoints of each in
    descending order of score. An ONNX file has a second, optional input, `score_thresholds` `(C,)`, with the
    checkpoint's as its default. In a torch.export program, these are built in, and images need at least three cells of
    the heatmap (9 pixels at stride 4), before and after resizing, and at most 8192 pixels on each side. The file is
    compared with PyTorch on images of several sizes, and not written if they differ.

    Args:
        checkpoint: Checkpoint of a training run.
        output: File to write: model.onnx, or model.pt2 for torch.export.
        half: Store weights with half the bits. Computation is as before. Only for ONNX.
        opset: Version of the ONNX operators, from 18 to the newest that the installed onnx supports.

    Returns:
        The file.

    Raises:
        InputError: If a value is not usable, the extra `export` is not installed, or the file's keypoints differ from
            those of PyTorch.
    """
    path = Path(output)
    if path.suffix not in (".onnx", ".pt2"):
        raise InputError(f"--output {output}: expected a name that ends with .onnx or .pt2")
    if half and path.suffix != ".onnx":
        raise InputError(f"--half: expected an --output that ends with .onnx, got {output}")
    if opset < LOWEST_OPSET:
        raise InputError(f"--opset {opset}: expected at least {LOWEST_OPSET}")
    if path.suffix == ".onnx":
        _require_onnx(opset)
    prepare_file(path, "--output")
    network = TorchNetwork(checkpoint, device="cpu")
    if path.suffix == ".pt2":
        from keypoint_detection.export.program import write_program  # torch's compiler takes a second to import

        return write_program(network, path)
    from keypoint_detection.export.onnx_file import write_onnx

    return write_onnx(network, path, half, opset)


def _require_onnx(opset: int) -> None:
    """Checks that the extra is installed, and supports this version of the operators."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f'{error}: pip install "keypoint_detection[export]"') from error
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:  # otherwise the exporter fails after seconds, and prints the traceback of a converter
        raise InputError(f"--opset {opset}: expected at most {newest}, the newest in onnx {onnx.__version__}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The flags; by default, those of the process.

    Returns:
        The exit code.
    """
    parser = parser_for(export, "keypoint-detection export")
    path = call(export, parser.parse_args(arguments).as_dict())
    logger.info("wrote %s, %.1f MB", path, path.stat().st_size / 1e6)
    return 0
