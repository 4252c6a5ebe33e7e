"""The data module: turns the user's paths into loaders for training, validation, test and prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from keypoint_detection import heatmaps
from keypoint_detection.batch import Batch
from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.channels import of_all_channels, parse_numbers
from keypoint_detection.data.dataset import KeypointsDataset
from keypoint_detection.data.evaluation_loader import EvaluationLoader, evaluation_batch_size
from keypoint_detection.data.geometry import fit_sizes, parse_image_size
from keypoint_detection.data.image_cache import create_cache
from keypoint_detection.data.loading import TrainingLoader, loader_arguments, loader_renders, process, resume_position
from keypoint_detection.data.native_format import DEFAULT_COORDINATES
from keypoint_detection.data.parts import Parts, read_parts
from keypoint_detection.data.sampler import EvaluationSampler, TrainingSampler
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.errors import InputError

Stage = Literal["train", "validation", "test"]


class KeypointsDataModule(pl.LightningDataModule):
    """The data of a training run: files, split, augmentation and loaders.

    `setup()` reads and checks everything, without sigma, stride, sizes or augmentation: these can be chosen from what
    it read (`train_annotations`, `train_sizes`) and assigned to the attributes of the same names before data is loaded.

    Args:
        json_dataset_path: JSON file with the images and keypoints to train on, in this library's or COCO's format.
        image_dataset_path: folder that the paths in the file are relative to; by default the folder of the file.
        json_validation_dataset_path: file to validate on; by default, part of the training file is split off.
        image_validation_dataset_path: folder of its images; by default image_dataset_path, or the file's own folder if
            that is not given either.
        json_test_dataset_path: file to test on at the end; by default, there is no test.
        image_test_dataset_path: folder of its images; the default is as for image_validation_dataset_path.
        keypoint_channels: channels to detect, separated by spaces; a=b merges b into a, or renames b to a if there is
            no a. By default all.
        keypoint_channel_max_keypoints: maximum number of keypoints in an image for each channel, or one number for all
            channels; -1 for any number, which is the default.
        keypoint_coordinates: coordinate convention of the native format: blender (origin bottom left, in [0, 1]),
            normalized (origin top left, in [0, 1]) or pixel (origin top left, in pixels).
        validation_split_ratio: share of the images that is split off for validation if no file is given; above 0 and
            below 1.
        batch_size: images per step and process (evaluations take up to 16 if that is more and the images are small);
            None if it will be assigned later.
        num_workers: processes that load data, per training process; 0 loads in the training process, auto depends on
            cores and device.
        cache_images: keep decoded images in memory, once for all workers; auto does so for data sets of up to a
            gigabyte.
        empty_channels: what a channel without keypoints means, absent or ignore: the image has none, or it was not
            labelled, so that it counts neither in the loss nor in the metrics.
        corrupt_images: what to do if an image cannot be read during training: raise stops, skip reports it once.
        render_heatmaps_on: where heatmaps are rendered: loader, device, or auto (the device, unless it is the CPU).
        seed: seed of the split, the order and the augmentation.
        heatmap_sigma: standard deviation of the Gaussians, in pixels of the network's input; None as for batch_size.
        heatmap_stride: pixels of the network's input per cell of the heatmaps; None as for batch_size.
        image_size: height and width that images are resized to fit into; None keeps their own sizes. For training with
            random changes, a much larger JPEG is decoded at a half, a quarter or an eighth of its size.
        train_crop_size: height and width of the crops in which larger training images are shown; None shows whole
            images.
        augmentation: random changes of the training images; None leaves them as they are.
        split: record of an earlier split (`datamodule.split`) to use again; None makes one.
    """

    def __init__(
        self,
        json_dataset_path: str | Path,
        image_dataset_path: str | Path | None = None,
        *,
        json_validation_dataset_path: str | Path | None = None,
        image_validation_dataset_path: str | Path | None = None,
        json_test_dataset_path: str | Path | None = None,
        image_test_dataset_path: str | Path | None = None,
        keypoint_channels: str | list[str] | None = None,
        keypoint_channel_max_keypoints: str | int | list[int] | None = None,
        keypoint_coordinates: str = DEFAULT_COORDINATES,
        validation_split_ratio: float = 0.1,
        batch_size: int | None = None,
        num_workers: int | Literal["auto"] = "auto",
        cache_images: bool | Literal["auto"] = "auto",
        empty_channels: Literal["absent", "ignore"] = "absent",
        corrupt_images: Literal["raise", "skip"] = "raise",
        render_heatmaps_on: Literal["auto", "loader", "device"] = "auto",
        seed: int = 0,
        heatmap_sigma: float | None = None,
        heatmap_stride: int | None = None,
        image_size: int | str | Sequence[int] | None = None,
        train_crop_size: int | str | Sequence[int] | None = None,
        augmentation: Augmentation | None = None,
        split: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.files = {}
        for name, json_path, folder in (
            ("train", json_dataset_path, None),
            ("validation", json_validation_dataset_path, image_validation_dataset_path),
            ("test", json_test_dataset_path, image_test_dataset_path),
        ):
            if json_path is not None:
                self.files[name] = (Path(json_path), Path(folder or image_dataset_path or Path(json_path).parent))
            elif folder is not None:
                raise InputError(f"--image_{name}_dataset_path {folder}: expected --json_{name}_dataset_path with it")
        self.keypoint_channels = keypoint_channels
        self.keypoint_channel_max_keypoints = parse_numbers(keypoint_channel_max_keypoints)
        self.keypoint_coordinates = keypoint_coordinates
        self.validation_split_ratio = validation_split_ratio
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache_images = cache_images
        self.empty_channels = empty_channels
        self.corrupt_images = corrupt_images
        self.render_heatmaps_on = render_heatmaps_on
        self.seed = seed
        self.heatmap_sigma = heatmap_sigma
        self.heatmap_stride = heatmap_stride
        self.image_size = image_size
        self.train_crop_size = train_crop_size
        self.augmentation = augmentation
        self.curriculum: Callable[[int, int], tuple[float, bool]] | None = None  # see `TrainingSampler`
        self.trained_images: TrainedImages | None = None  # of the weights that training starts from; before `setup()`
        self._given_split = split
        self._parts: Parts | None = None
        self._datasets: dict[str, KeypointsDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the files and splits them; does nothing when called again.

        Args:
            stage: ignored; Lightning passes it.

        Raises:
            InputError: in one line, for anything that is wrong with the data.
        """
        if self._parts is None:
            self._parts = read_parts(
                self.files,
                keypoint_channels=self.keypoint_channels,
                max_keypoints=self.keypoint_channel_max_keypoints,
                keypoint_coordinates=self.keypoint_coordinates,
                validation_split_ratio=self.validation_split_ratio, seed=self.seed,
                split=self._given_split, trained_images=self.trained_images,
            )  # fmt: skip
            if numbers := self.keypoint_channel_max_keypoints:
                self.keypoint_channel_max_keypoints = of_all_channels(numbers, len(self.channel_names))

    @property
    def parts(self) -> Parts:
        """Labels and sizes of all parts.

        Raises:
            RuntimeError: before `setup()`.
        """
        if self._parts is None:
            raise RuntimeError("call setup() first")
        return self._parts

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return self.train_annotations.channel_names

    @property
    def train_annotations(self) -> Annotations:
        """The images to train on."""
        return self.parts.annotations["train"]

    @property
    def validation_annotations(self) -> Annotations:
        """The images to validate on."""
        return self.parts.annotations["validation"]

    @property
    def test_annotations(self) -> Annotations | None:
        """The images to test on, or None."""
        return self.parts.annotations.get("test")

    @property
    def train_sizes(self) -> np.ndarray:
        """`(N, 2)` int width and height of the training images in pixels; 0 where the header was not read."""
        return self.parts.sizes["train"]

    @property
    def split(self) -> dict[str, Any]:
        """The record of the split: seed, fingerprints of the files, and the image names of each part."""
        return self.parts.split

    def dataset(self, stage: Stage) -> KeypointsDataset:
        """The samples of a part, created once; only those for training are augmented.

        Raises:
            InputError: if sigma or stride has not been set.
        """
        annotations = self.parts.annotations[stage]
        if self.heatmap_sigma is None or self.heatmap_stride is None:
            raise InputError("heatmap_sigma and heatmap_stride: expected numbers before the data is loaded, got None")
        if stage not in self._datasets:
            # Training images are cached at full size: they are rotated and scaled, and their size may vary.
            box = None if stage == "train" else parse_image_size(self.image_size)
            self._datasets[stage] = KeypointsDataset(
                annotations,
                heatmap_sigma=self.heatmap_sigma,
                heatmap_stride=self.heatmap_stride,
                image_size=self.image_size,
                augmentation=self.augmentation if stage == "train" else None,
                crop_size=self.train_crop_size if stage == "train" else None,
                seed=self.seed,
                empty_channels=self.empty_channels,
                cache=create_cache(annotations, self.parts.sizes[stage], self.cache_images, box),
                corrupt_images=self.corrupt_images,
            )
        return self._datasets[stage]

    def batches_per_epoch(self) -> int:
        """The number of batches in an epoch, in all processes together."""
        return -(-len(self.train_annotations) // self._chosen_batch_size())

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled training batches, from where a resumed trainer was interrupted; each pass is the next epoch."""
        rank, world = process(self.trainer)
        epoch, batches_done = (0, 0) if self.trainer is None else resume_position(self.trainer)
        sampler = TrainingSampler(
            len(self.train_annotations),
            seed=self.seed,
            batch_size=self._chosen_batch_size(),
            rank=rank,
            world=world,
            epoch=epoch,
            batches_done=batches_done,
            curriculum=self.curriculum,
        )
        return TrainingLoader(**self._arguments("train"), sampler=sampler, batch_size=sampler.batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the validation samples of this process, each of one image size."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test samples of this process, each of one image size.

        Raises:
            InputError: if there is no test file.
        """
        if "test" not in self.files:
            raise InputError("json_test_dataset_path: expected a file to test on, got None")
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The batches of `test_dataloader`, or those of `val_dataloader` if there is no test file."""
        return self._evaluation_loader("test" if "test" in self.files else "validation")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch to the device, except the sizes of its images."""
        if device.type == "mps":  # It has no float64.
            batch = batch._replace(transforms=batch.transforms.float())
        return super().transfer_batch_to_device(batch, device, dataloader_idx)._replace(sizes=batch.sizes)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Renders missing heatmaps. Called by Lightning."""
        if batch.heatmaps is not None:
            return batch
        rendered = heatmaps.render(batch.keypoints, batch.images.shape[2:], self.heatmap_sigma, self.heatmap_stride)
        return batch._replace(heatmaps=rendered)

    def on_exception(self, exception: BaseException) -> None:
        """Stops the workers when training fails, which Lightning forgets during validation. Called by Lightning."""
        if self.trainer is not None:
            self.trainer.fit_loop.teardown()  # they ignore SIGTERM, with which Python stops them when it exits

    def evaluation_sampler(self, stage: Stage, rank: int = 0, world: int = 1) -> EvaluationSampler:
        """The batches in which a process evaluates a part of the data set."""
        sizes = fit_sizes(self.parts.sizes[stage], parse_image_size(self.image_size))
        size = evaluation_batch_size(self._chosen_batch_size(), sizes, len(self.channel_names), self.heatmap_stride)
        return EvaluationSampler(sizes, size, rank, world)

    def _evaluation_loader(self, stage: Stage) -> EvaluationLoader:
        sampler = self.evaluation_sampler(stage, *process(self.trainer))
        return EvaluationLoader(**self._arguments(stage), batch_sampler=sampler)

    def _arguments(self, stage: Stage) -> dict[str, Any]:
        """What all loaders have in common."""
        dataset = self.dataset(stage)
        dataset.render = loader_renders(self.render_heatmaps_on, self.trainer, report=stage == "train")
        shared = loader_arguments(self.num_workers, self.trainer, report=stage == "train")
        return {"dataset": dataset, "collate_fn": dataset.collate, **shared}

    def _chosen_batch_size(self) -> int:
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise InputError(f"batch_size: expected a whole number of at least 1, got {self.batch_size!r}")
        return self.batch_size
