"""Two choices of the loader: where heatmaps are rendered, and whether its workers persist from epoch to epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Row, compare, main, wait_for
from loader import CHANNELS, KEYPOINTS, write_images
from torch.utils.data import DataLoader

from keypoint_detection.batch import Batch
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.loading import loader_arguments

IMAGES = 20  # two of them are split off for validation
BATCH_SIZE = 4
SIZE = 256
WORKERS = 2
EPOCHS = 2


def new_module(folder: Path) -> KeypointsDataModule:
    """The data of a training run."""
    path = write_images(folder, IMAGES, (SIZE, SIZE))
    module = KeypointsDataModule(
        path, keypoint_coordinates="normalized", batch_size=BATCH_SIZE, heatmap_sigma=6.0, heatmap_stride=4
    )
    module.setup()
    return module


def way_to_device(module: KeypointsDataModule, samples: list[Batch], device: str, render: bool) -> Callable[[], None]:
    """From samples to a batch to train on: collate and transfer, with heatmaps rendered before or after."""
    dataset = module.dataset("train")

    def batch() -> None:
        dataset.render = render
        transferred = module.transfer_batch_to_device(dataset.collate(samples), torch.device(device), 0)
        module.on_after_batch_transfer(transferred, 0)
        wait_for(device)

    return batch


def place_of_rendering(module: KeypointsDataModule) -> list[Row]:
    """Heatmaps rendered after the transfer against before it, both for the whole batch and in this process."""
    samples = module.dataset("train").__getitems__(range(BATCH_SIZE))
    work = f"collate and transfer {BATCH_SIZE} images {SIZE}x{SIZE}, {CHANNELS} channels x {KEYPOINTS} keypoints"
    rows = []
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        row = Row(f"rendering after the transfer, {device}", work, 0, "in the loader")
        ours, baseline = (way_to_device(module, samples, device, render) for render in (False, True))
        rows.append(compare(row, ours, baseline, 21))
    return rows


def persistent_workers(module: KeypointsDataModule) -> Row:
    """Epochs of a loader whose workers persist, against one that starts them in every epoch."""
    dataset = module.dataset("train")

    def epochs(persistent: bool) -> None:
        arguments = loader_arguments(WORKERS, None) | {"persistent_workers": persistent}
        loader = DataLoader(dataset, batch_size=BATCH_SIZE, collate_fn=dataset.collate, **arguments)
        for _ in range(EPOCHS):
            for _ in loader:
                pass

    work = f"{EPOCHS} epochs of {len(dataset)} JPEG {SIZE}x{SIZE}, {WORKERS} workers"
    row = Row("persistent workers (on)", work, 0, "workers that start in every epoch")
    return compare(row, lambda: epochs(True), lambda: epochs(False), 5)


def run() -> list[Row]:
    """Measure both choices."""
    with tempfile.TemporaryDirectory() as folder:
        module = new_module(Path(folder))
        return [*place_of_rendering(module), persistent_workers(module)]


if __name__ == "__main__":
    main({"loader_options": run}, __doc__)
