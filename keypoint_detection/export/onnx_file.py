"""Writes a detector as ONNX: the network with torch's exporter, and everything around it node by node.

C channels, H W image, h w heatmap.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from keypoint_detection.errors import InputError
from keypoint_detection.export.agreement import FULL, HALF, LOWEST_SCORE, check_network, write_checked
from keypoint_detection.export.onnx_decoding import DecodingOptions, decode
from keypoint_detection.export.onnx_nodes import Nodes
from keypoint_detection.export.onnx_preprocessing import preprocess
from keypoint_detection.files import finite
from keypoint_detection.models.backbones import Backbone
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.hyperparameters import keypoint_caps
from keypoint_detection.onnx_network import METADATA_KEY, OnnxNetwork
from keypoint_detection.predict import TorchNetwork
from keypoint_detection.score_thresholds import usable_thresholds
from keypoint_detection.version import library_version
from keypoint_detection.wording import first_line

# Libraries of the exporter that log every step.
_TALKATIVE = ("onnxscript", "onnx_ir", "torch.onnx")
# Tensors with fewer values, such as biases and shapes, keep all their bits.
_LEAST_HALVED = 64
_EXAMPLE_CELLS = (3, 5)  # height and width of the example, in multiples of the backbone's divisor; arbitrary


class _CentredNetwork(nn.Module):
    """From padded images to heatmaps. The mean colour has been subtracted from the images, so padding is 0."""

    def __init__(self, detector: KeypointDetector) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("mean", detector.backbone.image_mean * 255)
        self.register_buffer("factor", detector.backbone.image_std.reciprocal() / 255)

    def forward(self, images: Tensor) -> Tensor:
        """`(1, 3, H, W)` in [-255, 255] -> `(1, C, h, w)` in [0, 1]."""
        backbone = self.detector.backbone
        if type(backbone).forward is not Backbone.forward:  # the user's own one, which may not normalise
            return self.detector((images + self.mean) / 255).float().sigmoid()
        # The same as `Backbone.forward`, but with one pass over whole images instead of four.
        if backbone.n_channels_in == 1:
            images = images.mean(dim=1, keepdim=True)
        return self.detector.head(backbone.features(images * self.factor)).float().sigmoid()


def write_onnx(network: TorchNetwork, path: Path, half: bool, opset: int) -> Path:
    """Writes an ONNX file and compares it with the checkpoint.

    Args:
        network: The checkpoint.
        path: The file.
        half: Store weights as float16.
        opset: Version of ONNX's operators.

    Returns:
        The file.

    Raises:
        InputError: If torch cannot export the network, the file cannot be written, or its keypoints differ. An existing
            file then stays as it is.
    """
    model = build_model(network, half, opset)
    tolerance, lowest = (HALF, 1.0) if half else (FULL, LOWEST_SCORE)
    # An enlarged image of one pixel is uniform, so rounding moves its peaks.
    smallest = 2 if network.detector.hparams.image_size else 1
    caps = keypoint_caps(network.detector.hparams)
    return write_checked(
        path,
        model.SerializeToString(),
        lambda file: check_network(network, OnnxNetwork(file).detect, caps, tolerance, lowest, smallest),
    )


def build_model(network: TorchNetwork, half: bool, opset: int) -> onnx.ModelProto:
    """Builds the whole graph, from the bytes of an image to keypoints, with its metadata."""
    detector = network.detector
    values, caps = detector.hparams, keypoint_caps(detector.hparams)
    options = DecodingOptions(caps, values.minimal_keypoint_extraction_pixel_distance, values.heatmap_stride)
    fill = detector.backbone.image_mean.numpy() * 255
    before, after = Nodes("before/"), Nodes("after/")
    size = list(values.image_size) if values.image_size else None
    image = preprocess(before, "image", size, fill, detector.backbone.size_divisor, "images")
    exported = _export_network(detector, opset)
    if half:
        _halve(exported.graph)
    decode(after, "heatmaps", "score_thresholds", image, options, "keypoints")
    thresholds = detector.score_thresholds.numpy()
    graph = helper.make_graph(
        [*before.nodes, *exported.graph.node, *after.nodes],
        "keypoint_detection",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, [1, "height", "width", 3]),
            helper.make_tensor_value_info("score_thresholds", TensorProto.FLOAT, [len(caps)]),
        ],
        [helper.make_tensor_value_info("keypoints", TensorProto.FLOAT, ["keypoints", 4])],
        # The initializer of an input is its default.
        [*before.constants, *exported.graph.initializer, *after.constants,
         numpy_helper.from_array(usable_thresholds(thresholds), "score_thresholds")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=exported.opset_import, ir_version=exported.ir_version)
    model.producer_name, model.producer_version = "keypoint_detection", library_version()
    model.functions.extend(exported.functions)
    metadata = {
        "version": library_version(),
        "channel_names": list(values.keypoint_channels),
        "score_thresholds": finite(thresholds.tolist()),
        "max_keypoints": caps,
        "image_size": size,
        "heatmap_stride": values.heatmap_stride,
        "weights": "float16" if half else "float32",
        "evaluation": dict(network.evaluation),
    }
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    onnx.checker.check_model(model)
    return model


def _export_network(detector: KeypointDetector, opset: int) -> onnx.ModelProto:
    """Exports only the network, `images` -> `heatmaps`, with torch's exporter."""
    divisor = detector.backbone.size_divisor
    module = _CentredNetwork(detector).eval()
    height, width = (cells * divisor for cells in _EXAMPLE_CELLS)
    # Multiples of the divisor, so that this graph neither pads nor crops: other nodes do that.
    axes = {axis: divisor * torch.export.Dim(name, min=1, max=2**12) for axis, name in ((2, "rows"), (3, "columns"))}
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (torch.rand(1, 3, height, width, dtype=torch.float32),),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes={"images": axes},
                input_names=["images"],
                output_names=["heatmaps"],
                verbose=False,
            )
    except Exception as error:  # the exporter passes on errors of any kind
        reason = first_line(error.__cause__ or error)  # without the advice that the exporter adds on how to debug it
        what = f"torch {torch.__version__} cannot export the backbone {detector.hparams.backbone_type}"
        raise InputError(f"{what}: {reason}") from error
    model = program.model_proto
    written = next(operators.version for operators in model.opset_import if not operators.domain)
    if written != opset:  # the exporter only logs this, with a traceback
        raise InputError(f"--opset {opset}: expected a version that the exporter can write, such as {written}")
    for node in model.graph.node:  # the exporter's notes are longer than the graph
        del node.metadata_props[:]
        node.doc_string = ""
    return model


def _halve(graph: onnx.GraphProto) -> None:
    """Stores weights as float16; runtimes convert them once, when they load the file."""
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT and math.prod(weight.dims) >= _LEAST_HALVED:
            name, value = weight.name, numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(value.astype(np.float16), f"{name}/half"))
            graph.node.insert(0, helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
