"""An exported ONNX file against the checkpoint in PyTorch, for one image on the CPU, and where the time goes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from harness import DETECTOR_VALUES, PAUSE, THREADS, InProcess, Row, compare, main, milliseconds
from inference import HEIGHT, KEYPOINTS, WIDTH, dots, library_way, plain_network, save_checkpoint, trained_detector
from PIL import Image

from keypoint_detection import heatmaps
from keypoint_detection.data.geometry import letterbox
from keypoint_detection.data.images import load_image
from keypoint_detection.export import export
from keypoint_detection.models.backbones.layers import fold_normalization
from keypoint_detection.onnx_network import OnnxNetwork
from keypoint_detection.predict import KeypointPredictor

REPEATS = 15


def eager_way(checkpoint: Path, image: np.ndarray) -> Callable[[], object]:
    """The baseline: the network of a checkpoint as a plain script runs it, with this library's peaks."""
    network, stride = plain_network(checkpoint), DETECTOR_VALUES["heatmap_stride"]
    return lambda: heatmaps.decode(network(image), KEYPOINTS, stride=stride)


def run() -> list[Row]:
    """Compare the two predictors, then time the stages of each."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, picture = Path(folder) / "best.ckpt", Path(folder) / "image.jpg"
        detector = trained_detector()
        save_checkpoint(detector, checkpoint)
        model = export(str(checkpoint), str(Path(folder) / "model.onnx"))
        array = dots(1, HEIGHT, WIDTH, seed=99).images[0].permute(1, 2, 0).mul(255).byte().numpy()
        Image.fromarray(array).save(picture, quality=95)

        image = load_image(picture)
        eager = KeypointPredictor(checkpoint, device="cpu")
        exported = KeypointPredictor(model)
        exported.network = OnnxNetwork(model, threads=THREADS)
        work = f"one {WIDTH}x{HEIGHT} image, Unet defaults"
        row = Row("ONNX file", work, 0, "eager PyTorch, its default memory format", target=1.5)
        with InProcess(library_way, image, model) as ours, InProcess(eager_way, checkpoint, image) as plain:
            rows = [compare(row, ours, plain, repeats=REPEATS, pause=PAUSE)]
        row = Row("ONNX file", work, 0, "the checkpoint in KeypointPredictor")
        rows += [compare(row, lambda: exported(image), lambda: eager(image), repeats=REPEATS, pause=PAUSE)]
        tensor = letterbox(image, None)[0][None]
        with torch.inference_mode():
            folded = fold_normalization(detector)
            maps = folded(tensor).sigmoid()
            sizes = torch.tensor([[HEIGHT, WIDTH]])
            stages: dict[str, Callable[[], object]] = {
                "decode the JPEG": lambda: load_image(picture),
                "PyTorch: letterbox": lambda: letterbox(image, None),
                "PyTorch: network": lambda: folded(tensor),
                "PyTorch: peaks": lambda: detector._decode(maps, sizes),
                "ONNX: letterbox, network and peaks": lambda: exported.network.detect([image]),
            }
            rows += [
                Row(name, work, median(milliseconds(stage) for _ in range(REPEATS))) for name, stage in stages.items()
            ]
        return rows


if __name__ == "__main__":
    main({"export": run}, __doc__)
