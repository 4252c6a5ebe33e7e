"""Writes a detector as a torch.export program, which runs in torch without this library.

C channels, H W image, h w heatmap or resized image, N keypoints.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keypoint_detection import heatmaps
from keypoint_detection.errors import InputError
from keypoint_detection.export.agreement import FULL, Detect, ExportAgreement, check_network, write_checked
from keypoint_detection.files import finite
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.hyperparameters import keypoint_caps
from keypoint_detection.onnx_network import split_channels
from keypoint_detection.peaks import neighbourhoods, window_maximum
from keypoint_detection.plateaus import merge_ties
from keypoint_detection.predict import TorchNetwork
from keypoint_detection.score_thresholds import usable_thresholds
from keypoint_detection.version import library_version
from keypoint_detection.wording import first_line

METADATA_NAME = "keypoint_detection.json"
LARGEST_SIDE = 8192  # of an image in pixels; the exporter needs a limit
_FEWEST_CELLS = 3  # of a heatmap along each axis, because refining a peak needs three
_EXAMPLE_SIZE = (75, 107)  # arbitrary


def write_program(network: TorchNetwork, path: Path) -> Path:
    """Writes a program and compares it with the checkpoint.

    Args:
        network: The checkpoint.
        path: The file.

    Returns:
        The file.

    Raises:
        InputError: If torch cannot export the network, the file cannot be written, or its keypoints differ. An existing
            file then stays as it is.
    """
    program, stream = export_program(network.detector), io.BytesIO()
    metadata = {
        "version": library_version(),
        "channel_names": network.channel_names,
        "score_thresholds": finite(network.score_thresholds),
        "max_keypoints": keypoint_caps(network.detector.hparams),
        "image_size": network.image_size and list(network.image_size),
        "smallest_side": smallest_side(network.detector),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, stream, extra_files={METADATA_NAME: json.dumps(metadata)})

    def check(file: Path) -> ExportAgreement:
        found = load_program(file)
        return check_network(network, found, metadata["max_keypoints"], FULL, smallest=metadata["smallest_side"])

    return write_checked(path, stream.getvalue(), check)


def export_program(detector: KeypointDetector) -> torch.export.ExportedProgram:
    """Records the whole computation from an image to keypoints.

    Raises:
        InputError: If torch cannot export it.
    """
    example = torch.randint(0, 256, (1, *_EXAMPLE_SIZE, 3), dtype=torch.uint8)
    least = smallest_side(detector)
    sides = {axis: torch.export.Dim(name, min=least, max=LARGEST_SIDE) for axis, name in ((1, "height"), (2, "width"))}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ImageToKeypoints(detector).eval().requires_grad_(False)
            return torch.export.export(module, (example,), dynamic_shapes={"image": sides})
    except Exception as error:  # the exporter passes on errors of any kind
        what = f"torch {torch.__version__} cannot export the backbone {detector.hparams.backbone_type}"
        raise InputError(f"{what}: {first_line(error)}") from error


def smallest_side(detector: KeypointDetector) -> int:
    """Minimum height and width in pixels of images for a program, also if it resizes them."""
    return (_FEWEST_CELLS - 1) * detector.hparams.heatmap_stride + 1


def load_program(path: Path) -> Detect:
    """Loads an exported program. It returns only keypoints that reach its built-in thresholds."""
    extra = {METADATA_NAME: ""}
    program = torch.export.load(path, extra_files=extra).module()
    metadata = json.loads(extra[METADATA_NAME])

    @torch.inference_mode()
    def detect(images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        rows = [program(torch.from_numpy(np.ascontiguousarray(image))[None]).numpy() for image in images]
        return [split_channels(found, len(metadata["channel_names"]), max(metadata["max_keypoints"])) for found in rows]

    return detect


class ImageToKeypoints(nn.Module):
    """From the bytes of an image to its keypoints, without branches on values, which the exporter cannot record.

    Args:
        detector: The detector.
    """

    def __init__(self, detector: KeypointDetector) -> None:
        super().__init__()
        self.detector = detector
        self.caps = keypoint_caps(detector.hparams)
        self.register_buffer("score_thresholds", torch.from_numpy(usable_thresholds(detector.score_thresholds.cpu())))

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """`(1, H, W, 3)` uint8 -> `(N, 4)` float32: channel, x, y in pixels of the image, score."""
        planes = image.permute(0, 3, 1, 2)
        size = (image.shape[1], image.shape[2])
        new_size = self._fit(size)
        if self.detector.hparams.image_size:
            planes = F.interpolate(planes, new_size, mode="bilinear", antialias=True, align_corners=False)
        maps = self._heatmaps(planes.float() / 255, new_size)
        xy, scores = self._decode(maps)
        old, new = (torch.stack([_number(side) for side in reversed(sides)]) for sides in (size, new_size))  # x first
        xy = (torch.minimum(xy.double(), new) * (old / new)).float()  # the border may cut the last cells
        places = torch.arange(scores.shape[1])
        counts = (scores >= self.score_thresholds[:, None]) & (scores > 0)
        counts = counts & (places < torch.tensor(self.caps)[:, None])
        channels = torch.arange(len(self.caps), dtype=torch.float32)[:, None].expand_as(scores)
        return torch.cat([channels[..., None], xy, scores[..., None]], dim=-1)[counts]

    def _fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """`data.geometry.fit_size`, in tensors."""
        image_size = self.detector.hparams.image_size
        if not image_size:
            return size
        real = torch.stack([_number(side) for side in size])
        factor = (torch.tensor(image_size, dtype=torch.float64) / real).amin()
        fitted = (real * factor).round().clamp_min(1).long()
        return tuple(_bounded(fitted[axis], side) for axis, side in enumerate(image_size))

    def _heatmaps(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """`(1, 3, H, W)` in [0, 1] -> `(C, h, w)` in [0, 1]. This pads the images, so that the network does not."""
        divisor, stride = self.detector.backbone.size_divisor, self.detector.hparams.heatmap_stride
        mean = self.detector.backbone.image_mean
        padded = images - mean
        for axis, side in enumerate(size, start=2):
            blocks = _bounded((torch.full((), side) + (divisor - 1)) // divisor, -(-LARGEST_SIDE // divisor))
            place = torch.arange(blocks * divisor)
            shape = [-1 if axis == own else 1 for own in range(4)]
            padded = padded.index_select(axis, place.clamp(max=side - 1))
            padded = torch.where((place < side).view(shape), padded, 0.0)
        maps = self.detector(padded + mean).float().sigmoid()[0]
        for axis, cells in enumerate(heatmaps.heatmap_size(size, stride), start=1):
            torch._check(cells >= _FEWEST_CELLS)
            maps = maps.index_select(axis, torch.arange(cells))
        return maps

    def _decode(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """`heatmaps.decode` of `(C, h, w)`: `(C, N, 2)` and `(C, N)`, with scores below 0 for none."""
        values, count = self.detector.hparams, max(self.caps)
        radius = heatmaps.window_radius(values.minimal_keypoint_extraction_pixel_distance, values.heatmap_stride)
        is_peak = (maps == window_maximum(maps, radius)) & (maps >= heatmaps.PEAK_THRESHOLD)
        is_peak, centres = merge_ties(maps, is_peak, radius)
        flat = F.pad(torch.where(is_peak, maps, -1.0).flatten(1), (0, count), value=-1.0)
        scores, cells = flat.topk(count)
        cells = cells.clamp(max=maps.shape[1] * maps.shape[2] - 1)
        centres = centres.flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, 2))
        fitted = heatmaps.refine(neighbourhoods(maps, cells), maps.shape[-2:])
        refined = torch.where(centres.isnan(), fitted, centres)
        return heatmaps.to_pixels(refined, values.heatmap_stride), scores


def _number(value: int) -> Tensor:
    """A size as a tensor, even if it is only known when the program runs."""
    return torch.full((), value, dtype=torch.float64)


def _bounded(value: Tensor, most: int) -> int:
    """A number of pixels or blocks that is only known when the program runs; tells the exporter its bounds."""
    number = value.item()
    torch._check(number >= 1)
    torch._check(number <= most)
    return number
