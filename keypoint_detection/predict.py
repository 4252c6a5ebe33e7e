"""A trained detector for use: images in, keypoints in pixels of those images out.

B batch, C channels, N keypoints, H W image.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import torch
from PIL import Image

from keypoint_detection.allocator import PREDICTION, keep_freed_memory
from keypoint_detection.data.geometry import letterbox
from keypoint_detection.data.inputs import ImageInput, to_rgb
from keypoint_detection.errors import InputError
from keypoint_detection.heatmaps import transform_points
from keypoint_detection.models.backbones import BACKBONES
from keypoint_detection.models.backbones.layers import fold_normalization
from keypoint_detection.models.checkpoint_file import EVALUATION_KEY, VERSION_KEY, check_known, load_checkpoint
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.registry import check_registered
from keypoint_detection.score_thresholds import rounding_of, usable_thresholds
from keypoint_detection.tiles import merge_tiles, split_into_tiles
from keypoint_detection.wording import first_line

DEFAULT_DEVICE = "auto"
DEFAULT_BATCH_SIZE = 8
ScoreThreshold = float | Mapping[str, float] | None


class Keypoints(NamedTuple):
    """The keypoints of one channel in one image.

    Attributes:
        xy: `(N, 2)` float32 in continuous pixels of the image, in descending order of score.
        scores: `(N,)` float32 in [0, 1].
    """

    xy: np.ndarray
    scores: np.ndarray


Prediction = dict[str, Keypoints]


class Network(Protocol):
    """What finds the keypoints: a checkpoint run by torch, or an exported file run by another runtime."""

    channel_names: list[str]
    score_thresholds: list[float]
    image_size: Sequence[int] | None  # height and width that images are letterboxed into; None keeps their own sizes
    rounding: float  # relative difference that a score may have from the machine on which the thresholds were chosen
    evaluation: Mapping[str, Any]  # how the training run evaluated: `EVALUATION_KEY` of a checkpoint; empty if unknown

    def detect(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Finds all keypoints.

        Args:
            images: `(H, W, 3)` uint8 RGB each, of any sizes.

        Returns:
            For each image, `(C, N, 2)` xy in its pixels, NaN for none, and `(C, N)` scores in descending order.
        """


class TorchNetwork:
    """A checkpoint of a training run, run by torch.

    `detector` computes exactly what validation and test computed. `detect` runs a copy of it, made at the first call,
    in which batch normalisation is folded into the convolutions: its scores and keypoints differ by rounding errors.
    On a CPU, the process keeps freed memory for the next image (see `keep_freed_memory`).

    Args:
        checkpoint: The file. It is read without running code from it.
        device: Where the network runs, such as `cpu` or `cuda:0`; `auto` takes an accelerator if there is one.

    Raises:
        InputError: If the file is not a checkpoint of a detector.
    """

    def __init__(self, checkpoint: str | PathLike[str], device: str = DEFAULT_DEVICE) -> None:
        if device == "auto":
            device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
        try:
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {device}: {first_line(error)}") from error
        if self.device.type == "meta":
            raise InputError("--device meta: expected a device that computes, such as cpu")
        content = load_checkpoint(checkpoint)
        # Without the loss, which may be the user's own and is only needed for training.
        values = {name: v for name, v in content["hyper_parameters"].items() if name not in ("loss", "loss_arguments")}
        if "backbone_type" in values:
            check_registered(BACKBONES, values["backbone_type"], "backbone", f"checkpoint {checkpoint}")
        known = inspect.signature(KeypointDetector).parameters
        check_known(f"checkpoint {checkpoint}", values, known, content.get(VERSION_KEY))
        try:
            self.detector = KeypointDetector(**values, load_pretrained=False)
        except TypeError as error:
            message = f"checkpoint {checkpoint}: its hyperparameters do not fit this version's detector: {error}"
            raise InputError(message) from error
        try:
            self.detector.load_state_dict(content["state_dict"])
        except RuntimeError as error:  # torch lists every weight that does not fit, over many lines
            raise InputError(f"checkpoint {checkpoint}: its weights do not fit the network it describes") from error
        self.detector.to(self.device).eval()
        if self.device.type == "cpu":
            keep_freed_memory(*PREDICTION)
        self.channel_names = list(self.detector.hparams.keypoint_channels)
        self.evaluation: Mapping[str, Any] = content.get(EVALUATION_KEY, {})
        self.image_size = self.detector.hparams.image_size
        self.rounding = rounding_of(self.device.type)
        self.score_thresholds = self.detector.score_thresholds.tolist()

    @cached_property
    def _folded(self) -> KeypointDetector:
        return fold_normalization(self.detector)

    @torch.inference_mode()
    def detect(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `Network`."""
        size = self.detector.hparams.image_size
        letterboxed = [letterbox(image, tuple(size) if size else None) for image in images]
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        # Only images of the same size share a batch: padding an image to the size of others would change its keypoints.
        for shape in dict.fromkeys(image.shape for image, _ in letterboxed):
            same = [index for index, (image, _) in enumerate(letterboxed) if image.shape == shape]
            inputs, transforms = zip(*(letterboxed[index] for index in same), strict=True)
            xy, scores = self._folded.detect(torch.stack(inputs).to(self.device))
            xy = transform_points(xy.cpu(), torch.from_numpy(np.stack(transforms)))
            found |= dict(zip(same, zip(xy.numpy(), scores.cpu().numpy(), strict=True), strict=True))
        return [found[index] for index in range(len(images))]


def load_network(path: str | PathLike[str], device: str = DEFAULT_DEVICE) -> Network:
    """Loads a checkpoint, or a file written by `keypoint-detection export`, depending on its file name extension."""
    if Path(path).suffix == ".onnx":
        from keypoint_detection.onnx_network import OnnxNetwork  # needs the optional extra `export`

        return OnnxNetwork(path, device)
    if Path(path).suffix == ".pt2":
        raise InputError(f"{path}: is a program for torch.export.load, expected a checkpoint or an .onnx file")
    return TorchNetwork(path, device)


class KeypointPredictor:
    """Finds keypoints in images of any kind and size.

    `KeypointPredictor("best.ckpt")("image.png")["corner"].xy` are the corners in pixels of that image. With a
    checkpoint on a CPU, the process keeps freed memory (see `keep_freed_memory`).

    Args:
        checkpoint: A checkpoint of a training run, or an ONNX file written by `keypoint-detection export`.
        device: Where the network runs, such as `cpu` or `cuda:0`; `auto` takes an accelerator if there is one.
        score_threshold: The score from which a detection counts, one for all channels or one per channel by name. None
            takes the checkpoint's thresholds: those with the best F1 in validation, or those that `evaluate --recall`
            stored; 0.1 for a channel without one. For a channel that was hardly learned, it may be near 0.01, and most
            detections wrong.
        max_keypoints: Maximum number of keypoints per channel and image; it may exceed that of the training run, except
            in an ONNX file or for channels with a maximum of their own (`keypoint_channel_max_keypoints`). None takes
            that of the training run, which applies to each tile if there are tiles.
        batch_size: Number of images that go through the network at once.
        tile: Side length in pixels of overlapping tiles, for images much larger than those of training; None: no tiles.

    Raises:
        InputError: If the file is not a checkpoint, or a value is out of its range.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        device: str = DEFAULT_DEVICE,
        score_threshold: ScoreThreshold = None,
        max_keypoints: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        tile: int | None = None,
    ) -> None:
        smallest = {"batch_size": (batch_size, 1), "max_keypoints": (max_keypoints, 1), "tile": (tile, 32)}
        for name, (value, least) in smallest.items():
            if value is None and name != "batch_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise InputError(f"{name} {value!r}: expected a whole number")
            if value < least:
                raise InputError(f"{name} {value}: expected at least {least}")
        self.network = load_network(checkpoint, device)
        if max_keypoints is not None and isinstance(self.network, TorchNetwork):
            values = self.network.detector.hparams
            values.max_keypoints = max(values.max_keypoints, max_keypoints)
        self.max_keypoints = max_keypoints
        self.batch_size = batch_size
        self.tile = tile
        self._thresholds = self._choose_thresholds(score_threshold)

    @property
    def channel_names(self) -> list[str]:
        """Names of the C channels."""
        return self.network.channel_names

    @property
    def score_thresholds(self) -> dict[str, float]:
        """The score from which a detection counts, by channel."""
        return dict(zip(self.channel_names, self._thresholds.tolist(), strict=True))

    @overload
    def __call__(self, images: ImageInput) -> Prediction: ...

    @overload
    def __call__(self, images: Iterable[ImageInput]) -> list[Prediction]: ...

    def __call__(self, images: ImageInput | Iterable[ImageInput]) -> Prediction | list[Prediction]:
        """Finds the keypoints of one image or of several.

        Args:
            images: An image (see `to_rgb` for all kinds), or several: a list or iterator of images of any size, an
                array `(B, H, W, 1, 3 or 4)` or a tensor `(B, 1, 3 or 4, H, W)`.

        Returns:
            The keypoints by channel, in pixels of the image (files and PIL images are first turned upright according
            to EXIF); for several images, a list.

        Raises:
            InputError: If an image is not usable; the message says what it is.
        """
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            return list(self.stream(map(images.__getitem__, range(len(images)))))  # some tensors do not iterate
        if isinstance(images, (str, PathLike, Image.Image, np.ndarray, torch.Tensor)):
            return next(self.stream([images]))
        if not isinstance(images, Iterable) or isinstance(images, (bytes, Mapping)):
            raise InputError(
                f"image of type {type(images).__name__}: expected a path, a PIL image, an array or a tensor"
            )
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageInput]) -> Iterator[Prediction]:
        """Finds keypoints image by image, holding at most one batch of images in memory.

        Args:
            images: Images of any kind and size.

        Yields:
            The keypoints of each image, by channel, in the order of the images.
        """
        pictures = (to_rgb(image) for image in images)
        while chunk := list(itertools.islice(pictures, self.batch_size)):
            for xy, scores in self._detect(chunk):
                yield self._select(xy, scores)

    def _detect(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        if self.tile is None:
            return self.network.detect(images)
        return [self._detect_tiles(image) for image in images]

    def _detect_tiles(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tiles = split_into_tiles((image.shape[0], image.shape[1]), self.tile)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(tiles), self.batch_size):
            chunk = tiles[start : start + self.batch_size]
            found += self.network.detect([np.ascontiguousarray(image[tile.rows, tile.columns]) for tile in chunk])
        size = self.network.image_size
        scale = max(1.0, self.tile / min(size)) if size else 1.0
        return merge_tiles(tiles, found, scale)

    def _select(self, xy: np.ndarray, scores: np.ndarray) -> Prediction:
        """Applies thresholds and the maximum number to the `(C, N, 2)` keypoints of one image."""
        selected = {}
        for name, threshold, points, heights in zip(self.channel_names, self._thresholds, xy, scores, strict=True):
            counts = np.flatnonzero((heights >= threshold) & ~np.isnan(points[:, 0]))[: self.max_keypoints]
            selected[name] = Keypoints(points[counts].astype(np.float32), heights[counts].astype(np.float32))
        return selected

    def _choose_thresholds(self, chosen: ScoreThreshold) -> np.ndarray:
        thresholds = usable_thresholds(self.network.score_thresholds, self.network.rounding)
        wrong = f"score_threshold {chosen!r}: expected a number in [0, 1], or such numbers by channel"
        if isinstance(chosen, Mapping):
            unknown = set(chosen) - set(self.channel_names)
            if unknown:
                known = ", ".join(self.channel_names)
                raise InputError(f"score_threshold: no channel {min(unknown)!r}, expected {known}")
            given = chosen
        else:
            given = {} if chosen is None else dict.fromkeys(self.channel_names, chosen)
        if any(isinstance(value, bool) or not isinstance(value, int | float | np.number) for value in given.values()):
            raise InputError(wrong)
        own = zip(self.channel_names, thresholds.tolist(), strict=True)
        thresholds = np.array([given.get(name, threshold) for name, threshold in own], dtype=np.float32)
        if not ((thresholds >= 0) & (thresholds <= 1)).all():
            raise InputError(wrong)
        return thresholds
