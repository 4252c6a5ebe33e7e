"""One image, from its file to keypoints: this library against PIL, plain PyTorch and scikit-image.

The predictor runs the checkpoint and the file that `keypoint-detection export` writes from it (extra `export`).

The network is trained briefly to find white dots, so that the peaks are those of a detector rather than noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import DETECTOR_VALUES, PAUSE, THREADS, InProcess, Row, compare, main
from PIL import Image
from skimage.feature import peak_local_max
from torch import Tensor
from torch.nn import functional as F

from keypoint_detection import heatmaps
from keypoint_detection.allocator import PREDICTION, keep_freed_memory
from keypoint_detection.batch import Batch
from keypoint_detection.data.geometry import fit_size, parse_image_size
from keypoint_detection.data.inputs import ImageInput
from keypoint_detection.export import export
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.optimization import one_cycle
from keypoint_detection.onnx_network import OnnxNetwork
from keypoint_detection.predict import KeypointPredictor
from keypoint_detection.train.image_sizes import LARGEST_SIDE

WIDTH, HEIGHT, CHANNELS = 640, 480, 4
KEYPOINTS = 20  # maximum per channel, as by default


def dots(images: int, height: int, width: int, seed: int) -> Batch:
    """White dots on gray noise; every channel has to find them all."""
    generator = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(images, 1, 6, 2, generator=generator) * torch.tensor([width, height])
    drawn = heatmaps.render(keypoints, (height, width), 4.0)
    noise = 0.4 * torch.rand(images, 3, height, width, generator=generator)
    return Batch(
        images=torch.maximum(noise, drawn),
        keypoints=keypoints.expand(-1, CHANNELS, -1, -1),
        heatmaps=None,
        sizes=torch.tensor([[height, width]] * images),
        labelled=torch.ones(images, CHANNELS, dtype=torch.bool),
        transforms=torch.eye(3, dtype=torch.float64).expand(images, 3, 3),
        indices=torch.arange(images),
    )


def trained_detector() -> KeypointDetector:
    """A detector trained to find white dots."""
    torch.manual_seed(0)
    detector = KeypointDetector([f"channel{i}" for i in range(CHANNELS)], **DETECTOR_VALUES)
    rate, steps = detector.hparams.learning_rate, 200
    optimizer = torch.optim.AdamW(detector.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * one_cycle(step / steps, warmup=0.2)
        optimizer.zero_grad()
        detector.training_step(dots(2, 96, 128, seed=step))["loss"].backward()
        optimizer.step()
    return detector.eval()


def save_checkpoint(detector: KeypointDetector, path: Path) -> None:
    """Write a checkpoint that a predictor can read."""
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}
    torch.save(content | {"pytorch-lightning_version": "2.6.0"}, path)


def run() -> list[Row]:
    """Time reading, network and peaks, at the image's own size and at the size that the defaults choose on a CPU."""
    detector = trained_detector()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        picture = dots(1, HEIGHT, WIDTH, seed=99).images[0].permute(1, 2, 0).mul(255).byte().numpy()
        Image.fromarray(picture).save(path, quality=95)
        return [row for side in (None, LARGEST_SIDE["cpu"]) for row in time_size(detector, path, side)]


def plain_network(checkpoint: Path) -> Callable[[np.ndarray], Tensor]:
    """The network of a checkpoint as a plain script runs it: `(H, W, 3)` uint8 to heatmaps `(1, C, h, w)`."""
    plain = KeypointDetector.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    plain.to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def run_once(picture: np.ndarray) -> Tensor:
        height, width = picture.shape[:2]
        image = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)[None].contiguous()
        image = (image - plain.backbone.image_mean) / plain.backbone.image_std
        image = F.pad(image, (0, -width % plain.backbone.size_divisor, 0, -height % plain.backbone.size_divisor))
        return plain.head(plain.backbone.features(image)).sigmoid()

    return run_once


def plain_way(path: Path, side: int | None) -> Callable[[], list[np.ndarray]]:
    """The baseline: PIL, the network of the checkpoint next to the image, and scikit-image's peaks."""
    network, stride = plain_network(path.with_suffix(".ckpt")), DETECTOR_VALUES["heatmap_stride"]
    height, width = fit_size((HEIGHT, WIDTH), parse_image_size(side))

    def run_once() -> list[np.ndarray]:
        picture = Image.open(path).convert("RGB")
        if side is not None:
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        maps = network(np.asarray(picture))[0].numpy()
        peaks = [peak_local_max(m, threshold_abs=0.01, num_peaks=KEYPOINTS, exclude_border=False) for m in maps]
        return [stride * channel[:, ::-1] for channel in peaks]

    return run_once


def library_way(image: ImageInput, network: Path) -> Callable[[], object]:
    """This library's way, with a checkpoint or an exported file."""
    predictor = KeypointPredictor(network, device="cpu")
    if network.suffix == ".onnx":
        predictor.network = OnnxNetwork(network, threads=THREADS)
    return partial(predictor, image)


def plain_way_with_memory(path: Path, side: int | None) -> Callable[[], list[np.ndarray]]:
    """The baseline in a process that keeps freed memory, like that of the predictor."""
    keep_freed_memory(*PREDICTION)
    return plain_way(path, side)


def time_size(detector: KeypointDetector, path: Path, side: int | None) -> list[Row]:
    """Time one image, letterboxed into a square of `side` pixels, or at its own size if that is None."""
    detector.hparams.image_size = None if side is None else [side, side]
    checkpoint = path.with_suffix(".ckpt")
    save_checkpoint(detector, checkpoint)
    exported = export(str(checkpoint), str(path.with_suffix(".onnx")))
    height, width = fit_size((HEIGHT, WIDTH), parse_image_size(side))
    reading = "PIL" if side is None else "PIL, JPEG decoded in full by both"
    rows = []
    for name, network, baseline, target in (
        ("inference", checkpoint, plain_way, 1.5),
        ("inference, exported", exported, plain_way, 1.5),
        ("inference", checkpoint, plain_way_with_memory, None),
    ):
        row = Row(
            name=name,
            work=f"one {WIDTH}x{HEIGHT} JPEG, file to keypoints, Unet at {width}x{height}, {CHANNELS} channels",
            milliseconds=0,
            baseline=f"{reading}, default memory format, skimage peaks" + ("" if target else "; freed memory kept"),
            target=target,
        )
        # Each in its own process: that of the predictor keeps the memory that the network frees.
        with InProcess(library_way, path, network) as ours, InProcess(baseline, path, side) as theirs:
            rows.append(compare(row, ours, theirs, repeats=15, pause=PAUSE))
    return rows


if __name__ == "__main__":
    main({"inference": run}, __doc__)
