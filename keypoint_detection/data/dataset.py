"""Samples and batches: images with their keypoints and heatmaps, after resizing and augmentation.

B batch, C channels, K keypoints, H W image, h w heatmap.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from keypoint_detection import heatmaps
from keypoint_detection.batch import Batch
from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.crop import Window, choose_window, keep_inside, within
from keypoint_detection.data.cutmix import cutmix
from keypoint_detection.data.flips import mirror_permutation
from keypoint_detection.data.geometry import (
    fit_size,
    letterbox,
    parse_image_size,
    resize,
    scaling,
    shrink_size,
    to_float,
    translation,
    warp,
)
from keypoint_detection.data.image_cache import ImageCache
from keypoint_detection.data.images import load_image, load_reduced
from keypoint_detection.data.sampler import BLANK, Key
from keypoint_detection.errors import ImageError, InputError
from keypoint_detection.wording import counted

logger = logging.getLogger(__name__)

EMPTY_CHANNELS = ("absent", "ignore")
CORRUPT_IMAGES = ("raise", "skip")


class KeypointsDataset(Dataset[Batch]):
    """Images with their keypoints and heatmaps, one sample at a time.

    `dataset[index]` and `dataset[Key(index, ...)]` return a `Batch` without the batch dimension. Every random choice is
    a pure function of seed and key, so the bits of a sample depend neither on the number of workers nor on what was
    read before. Without a cache, large JPEG files that will be augmented are decoded at a reduced size
    (`load_reduced`). Loaders need `dataset.collate`, which renders the heatmaps of a whole batch at once.

    Args:
        annotations: the images and their labels.
        heatmap_sigma: standard deviation of the Gaussians, in pixels of the network's input.
        heatmap_stride: pixels of the network's input per cell of the heatmaps.
        image_size: height and width that images are resized to fit into, keeping their aspect ratio; None keeps their
            size.
        augmentation: random changes; None for validation and test.
        crop_size: height and width of the crop that is shown of a larger image (`choose_window`); None shows whole
            images, as for validation and test.
        seed: seed of the augmentation and the crops.
        empty_channels: what a channel without keypoints means: "absent" (the image has none) or "ignore" (it was not
            labelled, so that it counts neither in the loss nor in the metrics).
        cache: decoded images, at full size or (without augmentation) resized to fit into `image_size`; None reads the
            file every time.
        render: False leaves `heatmaps` None, so that they can be rendered later on another device.
        corrupt_images: what to do if an image cannot be read: "raise" an error, or "skip" it: report it once and use a
            blank image, which counts neither in the loss nor in the metrics.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        heatmap_sigma: float,
        heatmap_stride: int,
        seed: int,
        empty_channels: str,
        corrupt_images: str,
        image_size: int | str | Sequence[int] | None = None,
        augmentation: Augmentation | None = None,
        crop_size: int | str | Sequence[int] | None = None,
        cache: ImageCache | None = None,
        render: bool = True,
    ) -> None:
        for name, value, choices in (
            ("empty_channels", empty_channels, EMPTY_CHANNELS),
            ("corrupt_images", corrupt_images, CORRUPT_IMAGES),
        ):
            if value not in choices:
                raise InputError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        self.annotations = annotations
        self.heatmap_sigma = heatmap_sigma
        self.heatmap_stride = heatmap_stride
        self.image_size = parse_image_size(image_size)
        kept_size = None if cache is None else cache.image_size
        if kept_size is not None and (augmentation is not None or kept_size != self.image_size):
            raise ValueError(f"cache resizes to {kept_size}, expected full size, or {image_size} without augmentation")
        self.augmentation = augmentation
        self.crop_size = parse_image_size(crop_size, "crop_size")
        self.seed = seed
        self.cache = cache
        self.render = render
        self.ignore_empty = empty_channels == "ignore"
        self.skip_corrupt = corrupt_images == "skip"
        self.mirrored_channels: tuple[int, ...] | None = None
        if augmentation is not None and augmentation.mirrors:
            self.mirrored_channels = mirror_permutation(annotations.groups, augmentation.flip_pairs, report=True)
        # Shared by all workers, so that an unreadable image is reported only once.
        self._reported = torch.zeros(len(annotations) if self.skip_corrupt else 0, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | Key) -> Batch:
        (sample,) = self.__getitems__([key])
        if self.render:
            rendered = self.render_heatmaps(sample.keypoints, (sample.images.shape[1], sample.images.shape[2]))
            return sample._replace(heatmaps=rendered)
        return sample

    def __getitems__(self, keys: Sequence[int | Key]) -> list[Batch]:
        """The samples of one batch, without heatmaps, which `collate` renders. Called by torch's loader."""
        whole = [Key(*key) if isinstance(key, tuple) else Key(key) for key in keys]
        unmixed = {key._replace(partner=None): self._sample(key) for key in whole}
        return [self._mix(key, unmixed) for key in whole]

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """Joins samples into a batch like the function `collate`, and renders its heatmaps."""
        batch = collate(samples)
        if not self.render:
            return batch
        size = (batch.images.shape[2], batch.images.shape[3])
        return batch._replace(heatmaps=self.render_heatmaps(batch.keypoints, size))

    def render_heatmaps(self, keypoints: Tensor, size: tuple[int, int]) -> Tensor:
        """Heatmaps `(..., h, w)` of keypoints `(..., K, 2)` in an image of `size` (H, W), on the keypoints' device."""
        return heatmaps.render(keypoints, size, self.heatmap_sigma, self.heatmap_stride)

    def _mix(self, key: Key, unmixed: dict[Key, Batch]) -> Batch:
        """The sample of a key, sometimes with a part of its partner's; `unmixed` holds the samples of the batch."""
        sample = unmixed[key._replace(partner=None)]
        alone = key.partner in (None, key.index) or key.epoch == BLANK
        if self.augmentation is None or not self.augmentation.cutmix or not key.augmented or alone:
            return sample
        random = np.random.default_rng((self.seed, key.epoch + 1, key.index % len(self), 1))  # differs from `_sample`
        if random.uniform() >= self.augmentation.cutmix:
            return sample
        other = key._replace(index=key.partner, partner=None)
        return cutmix(sample, unmixed[other] if other in unmixed else self._sample(other), random)

    def _sample(self, key: Key) -> Batch:
        """The sample of a key, not mixed with another one."""
        index, epoch, scale, augmented, _ = key
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {counted(len(self), 'image')}")
        index %= len(self)
        changed = self.augmentation is not None and augmented
        loaded = self._load(index, scale, changed)
        if loaded is None or epoch == BLANK:
            return self._blank(index, loaded and loaded[1], is_filler=epoch == BLANK)
        image, size = loaded
        keypoints = _pack(self.annotations.keypoints(index, width=size[1], height=size[0]), size)
        labelled = ~keypoints.isnan().all(dim=(1, 2)) if self.ignore_empty else torch.ones(len(keypoints)).bool()
        if not changed:
            pixels, to_file = letterbox(image, self.image_size, scale, size)
            keypoints = heatmaps.transform_points(keypoints, torch.from_numpy(np.linalg.inv(to_file)))
            if self.crop_size is not None:
                window = self._window(key, keypoints, (pixels.shape[1], pixels.shape[2]))
                pixels, to_file = window.take(pixels), to_file @ translation(window.left, window.top)
                keypoints = within(keypoints - keypoints.new_tensor([window.left, window.top]), window.size)
        else:
            pixels, to_file, keypoints, labelled = self._augment(key, image, size, keypoints, labelled)
        return Batch(
            images=pixels,
            keypoints=keypoints,
            heatmaps=None,
            sizes=torch.tensor(pixels.shape[1:]),
            labelled=labelled,
            transforms=torch.from_numpy(to_file),
            indices=torch.tensor(index),
        )

    def _augment(
        self, key: Key, image: np.ndarray, file_size: tuple[int, int], keypoints: Tensor, labelled: Tensor
    ) -> tuple[Tensor, np.ndarray, Tensor, Tensor]:
        """The augmented image, the homography to its file, its keypoints, and which of its channels are labelled."""
        random = np.random.default_rng((self.seed, key.epoch, key.index % len(self)))
        size = shrink_size(fit_size(file_size, self.image_size), key.scale)
        geometry = self.augmentation.geometry(random, size, may_mirror=self.mirrored_channels is not None)
        from_file = geometry.homography @ scaling(file_size, size)
        keypoints = heatmaps.transform_points(keypoints, torch.from_numpy(from_file))
        window = self._window(key, keypoints, size)
        shift = translation(-window.left, -window.top)
        if np.array_equal(geometry.homography, np.eye(3)):
            pixels = to_float(window.take(resize(image, size)))
        else:
            from_image = shift @ geometry.homography @ scaling((image.shape[0], image.shape[1]), size)
            pixels = warp(image, from_image, window.size, self.augmentation.fill)
        keypoints = within(keypoints - keypoints.new_tensor([window.left, window.top]), window.size)
        if geometry.mirrored:
            order = torch.tensor(self.mirrored_channels)
            keypoints, labelled = keypoints[order], labelled[order]
        pixels = self.augmentation.photometric(pixels, random)
        return pixels, np.linalg.inv(shift @ from_file), keypoints, labelled

    def _window(self, key: Key, keypoints: Tensor, size: tuple[int, int]) -> Window:
        """The part of an image of `size` (H, W) that a sample shows, possibly all of it."""
        if self.crop_size is None:
            return Window(0, 0, size)
        random = np.random.default_rng((self.seed, key.epoch, key.index % len(self), 2))  # used for no other choice
        return choose_window(keypoints, size, shrink_size(self.crop_size, key.scale), random)

    def _load(self, index: int, scale: float, changed: bool) -> tuple[np.ndarray, tuple[int, int]] | None:
        """The decoded image, possibly at a reduced size, and the size of its file; None if the image is skipped."""
        path = self.annotations.path(index)
        try:
            if self.cache is not None:
                return self.cache.load(index), self.cache.file_size(index)
            if changed:
                return load_reduced(path, lambda size: self._needed(size, scale))
            # Validation, test and prediction use every pixel of the file, and so does training without augmentation.
            pixels = load_image(path)
            return pixels, (pixels.shape[0], pixels.shape[1])
        except InputError as error:
            message = f"{self.annotations.describe(index)}: {error}"
            if not self.skip_corrupt:
                raise ImageError(message) from error
            if not self._reported[index]:
                self._reported[index] = True
                logger.warning("Skipped: %s", message)
            return None

    def _needed(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Height and width that an image of `size` needs so that augmentation, except perspective, hardly blurs it."""
        height, width = shrink_size(fit_size(size, self.image_size), scale)
        zoom = self.augmentation.largest_zoom
        return math.ceil(height * zoom), math.ceil(width * zoom)

    def _blank(self, index: int, file_size: tuple[int, int] | None, is_filler: bool) -> Batch:
        """A black image that counts neither in the loss nor in the metrics; a filler belongs to no image (index -1)."""
        size = (32, 32) if file_size is None else fit_size(file_size, self.image_size)
        channels = len(self.annotations.channel_names)
        return Batch(
            images=torch.zeros(3, *size),
            keypoints=torch.full((channels, 1, 2), torch.nan),
            heatmaps=None,
            sizes=torch.tensor(size),
            labelled=torch.zeros(channels, dtype=torch.bool),
            transforms=torch.eye(3, dtype=torch.float64),
            indices=torch.tensor(-1 if is_filler else index),
        )


def collate(samples: Sequence[Batch]) -> Batch:
    """Joins samples into a batch: images are padded to the largest, keypoints to the largest number of them.

    Args:
        samples: as `KeypointsDataset` returns them: batches without the batch dimension.

    Returns:
        The batch. Its heatmaps are None.
    """
    count = max(sample.keypoints.shape[1] for sample in samples)
    keypoints = torch.full((len(samples), len(samples[0].keypoints), count, 2), torch.nan)
    for target, sample in zip(keypoints, samples, strict=True):
        target[:, : sample.keypoints.shape[1]] = sample.keypoints
    return Batch(
        images=_pad([sample.images for sample in samples]),
        keypoints=keypoints,
        heatmaps=None,
        sizes=torch.stack([sample.sizes for sample in samples]),
        labelled=torch.stack([sample.labelled for sample in samples]),
        transforms=torch.stack([sample.transforms for sample in samples]),
        indices=torch.stack([sample.indices for sample in samples]),
    )


def _pad(images: Sequence[Tensor]) -> Tensor:
    """Joins images `(3, H, W)` into `(B, 3, H, W)`; smaller ones are padded with 0 at the right and the bottom."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    if all(image.shape[1:] == (height, width) for image in images):
        return torch.stack(list(images))
    batch = torch.zeros(len(images), 3, height, width)
    for target, image in zip(batch, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    return batch


def _pack(keypoints: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
    """Packs keypoints `(K_c, 2)` of each channel into one tensor `(C, K, 2)`; NaN for none or outside `size` (H, W)."""
    # In numpy: with many channels, torch took a twentieth of the total time per training image.
    packed = np.full((len(keypoints), max(1, *map(len, keypoints)), 2), np.nan, np.float32)
    for target, points in zip(packed, keypoints, strict=True):
        target[: len(points)] = points
    # Keypoints outside have already been left out, except in images whose headers were not read.
    return torch.from_numpy(keep_inside(packed, (size[1], size[0])))
