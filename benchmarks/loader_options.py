"""What a loader may do in two ways: where heatmaps are rendered."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Row, compare, main, wait_for
from loader import CHANNELS, KEYPOINTS, write_images

from keypoint_detection.batch import Batch
from keypoint_detection.data.datamodule import KeypointsDataModule

IMAGES = 20  # of which two are split off
BATCH_SIZE = 4
SIZE = 256


def new_module(folder: Path) -> KeypointsDataModule:
    """The data of a training."""
    path = write_images(folder, IMAGES, (SIZE, SIZE))
    module = KeypointsDataModule(
        path, keypoint_coordinates="normalized", batch_size=BATCH_SIZE, heatmap_sigma=6.0, heatmap_stride=4
    )
    module.setup()
    return module


def way_to_device(module: KeypointsDataModule, samples: list[Batch], device: str, render: bool) -> Callable[[], None]:
    """What becomes of samples until they train: collated and transferred, their heatmaps rendered before or after."""
    dataset = module.dataset("train")

    def batch() -> None:
        dataset.render = render
        transferred = module.transfer_batch_to_device(dataset.collate(samples), torch.device(device), 0)
        module.on_after_batch_transfer(transferred, 0)
        wait_for(device)

    return batch


def place_of_rendering(module: KeypointsDataModule) -> list[Row]:
    """Heatmaps as the device renders them, against the loader's, both for the whole batch and in this process."""
    samples = module.dataset("train").__getitems__(range(BATCH_SIZE))
    work = f"collate and transfer {BATCH_SIZE} images {SIZE}x{SIZE}, {CHANNELS} channels x {KEYPOINTS} keypoints"
    rows = []
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        row = Row(f"rendering after the transfer, {device}", work, 0, "in the loader")
        ours, baseline = (way_to_device(module, samples, device, render) for render in (False, True))
        rows.append(compare(row, ours, baseline, 21))
    return rows


def run() -> list[Row]:
    """The place of rendering."""
    with tempfile.TemporaryDirectory() as folder:
        module = new_module(Path(folder))
        return place_of_rendering(module)


if __name__ == "__main__":
    main({"loader_options": run}, __doc__)
