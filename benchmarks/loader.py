"""Loading: this library's data set against Pillow, one image at a time, with a full grid per keypoint.

Both decode JPEG files in full. A second baseline lets Pillow decode them at half scale (`draft`), which is faster and
changes the pixels. This library too decodes training images at a reduced scale if they are much larger than the
network's input; that is measured against decoding them in full.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from harness import Row, compare, main
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from keypoint_detection.batch import Batch
from keypoint_detection.data import dataset as dataset_module
from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.dataset import KeypointsDataset
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.image_cache import ImageCache
from keypoint_detection.data.images import load_image, scan_sizes
from keypoint_detection.data.sampler import TrainingSampler

IMAGES = 16
FILE_SIZE = (640, 480)
SIZE = (320, 240)
CHANNELS = 4
KEYPOINTS = 4
SIGMA = 2.0
BATCH_SIZE = 4
PHOTOGRAPHS = ((1920, 1080), (4032, 3024))
PHOTOGRAPH_INPUT = 512


def write_images(folder: Path, count: int = IMAGES, size: tuple[int, int] = FILE_SIZE) -> Path:
    """Write JPEG files of `size` (width, height), detailed like photographs, and labels; return the JSON file."""
    random = np.random.default_rng(0)
    entries = []
    for index in range(count):
        picture = np.zeros((size[1], size[0], 3))
        for octave in range(3, 9):  # detail whose amplitude falls with its frequency, as in photographs
            noise = Image.fromarray(random.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8))
            picture += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), dtype=float) / 2 ** (octave - 2)
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)
        keypoints = random.uniform(0, 1, (CHANNELS, KEYPOINTS, 2)).tolist()
        entries.append({"image_path": f"{index}.jpg"} | {f"channel{c}": points for c, points in enumerate(keypoints)})
    path = folder / "dataset.json"
    path.write_text(json.dumps({"coordinates": "normalized", "dataset": entries}), encoding="utf-8")
    return path


def full_grid(keypoints: Tensor) -> Tensor:
    """The plain way to render: `(C, K, 2)` -> `(C, H, W)`, a Gaussian over the whole image for every keypoint."""
    y, x = torch.meshgrid(torch.arange(SIZE[1]) + 0.5, torch.arange(SIZE[0]) + 0.5, indexing="ij")
    heatmaps = torch.zeros(len(keypoints), SIZE[1], SIZE[0])
    for heatmap, channel in zip(heatmaps, keypoints, strict=True):
        for keypoint in channel:
            squared = (x - keypoint[0]) ** 2 + (y - keypoint[1]) ** 2
            torch.maximum(heatmap, torch.exp(-squared / (2 * SIGMA**2)), out=heatmap)
    return heatmaps


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """The plain way: open, resize, convert, and render every keypoint on the whole image.

    Args:
        json_path: The labels.
        draft: Decode a JPEG at the smallest scale that Pillow offers and that is large enough.
    """

    def __init__(self, json_path: Path, draft: bool = False) -> None:
        self.folder = json_path.parent
        self.draft = draft
        self.entries = json.loads(json_path.read_text(encoding="utf-8"))["dataset"]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        entry = self.entries[index]
        with Image.open(self.folder / entry["image_path"]) as file:
            if self.draft:
                file.draft("RGB", SIZE)
            image = file.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        keypoints = torch.tensor([entry[f"channel{channel}"] for channel in range(CHANNELS)]) * torch.tensor(SIZE)
        return pixels, full_grid(keypoints)


def run() -> list[Row]:
    """Load an epoch without workers, with and without augmentation and cache, and with heatmaps left to the device."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        path = write_images(Path(name))
        annotations = read_annotations(path, path.parent)
        full, half = (DataLoader(PlainDataset(path, draft), batch_size=BATCH_SIZE) for draft in (False, True))
        work = f"{IMAGES} JPEG 640x480 to 320x240, {CHANNELS} channels x {KEYPOINTS} keypoints, stride 1, no workers"
        augmentation = Augmentation(rotation=30, horizontal_flip=0.5, vertical_flip=0.0)
        cache = ImageCache(annotations, scan_sizes(annotations))
        for title, arguments, plain, target in (
            ("loader", {}, full, 2),
            ("loader", {}, half, None),
            ("loader, heatmaps left to the device", {"render": False}, full, None),
            ("loader, cached images", {"cache": cache}, full, None),
            ("loader, augmented", {"augmentation": augmentation}, full, None),
            ("loader, augmented and cached", {"augmentation": augmentation, "cache": cache}, full, None),
        ):
            dataset = KeypointsDataset(
                annotations, heatmap_sigma=SIGMA, heatmap_stride=1, image_size=(SIZE[1], SIZE[0]), seed=0,
                empty_channels="absent", corrupt_images="raise", **arguments,
            )  # fmt: skip
            sampler = TrainingSampler(IMAGES, seed=0, batch_size=BATCH_SIZE)
            ours = DataLoader(dataset, sampler=sampler, batch_size=BATCH_SIZE, collate_fn=dataset.collate)
            decoded = "in full" if plain is full else "at half scale (draft)"
            row = Row(title, work, 0, f"PIL, per image, decoded {decoded}, full grid per keypoint", target=target)
            rows.append(compare(row, lambda ours=ours: list(ours), lambda plain=plain: list(plain), repeats=7))
    return [*rows, *(photographs(size) for size in PHOTOGRAPHS)]


def photographs(size: tuple[int, int]) -> Row:
    """Load photographs of `size` (width, height) for training, against the same with each file decoded in full."""

    def whole(path: Path, needed: object) -> tuple[np.ndarray, tuple[int, int]]:
        pixels = load_image(path)
        return pixels, (pixels.shape[0], pixels.shape[1])

    with tempfile.TemporaryDirectory() as name:
        path = write_images(Path(name), BATCH_SIZE, size)
        dataset = KeypointsDataset(
            read_annotations(path, path.parent), heatmap_sigma=SIGMA, heatmap_stride=4, image_size=PHOTOGRAPH_INPUT,
            seed=0, empty_channels="absent", corrupt_images="raise",
            augmentation=Augmentation(rotation=30, horizontal_flip=0.5, vertical_flip=0.0),
        )  # fmt: skip
        work = f"{BATCH_SIZE} JPEG {size[0]}x{size[1]} to {PHOTOGRAPH_INPUT} px, augmented, no workers"
        row = Row("loader, photographs", work, 0, "the same, decoded in full")

        def in_full() -> list[Batch]:
            with mock.patch.object(dataset_module, "load_reduced", whole):
                return dataset.__getitems__(range(BATCH_SIZE))

        return compare(row, lambda: dataset.__getitems__(range(BATCH_SIZE)), in_full, repeats=7)


if __name__ == "__main__":
    main({"loader": run}, __doc__)
