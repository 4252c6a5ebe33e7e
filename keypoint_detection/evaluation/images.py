"""Runs a detector over a labelled set as validation does, and keeps what it found in each image.

B batch, C channels, N detections, K true keypoints, H W image, h w heatmap.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from keypoint_detection.batch import Batch
from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.dataset import KeypointsDataset
from keypoint_detection.data.geometry import fit_sizes
from keypoint_detection.data.sampler import EvaluationSampler
from keypoint_detection.errors import InputError
from keypoint_detection.heatmaps import transform_points
from keypoint_detection.markers import to_picture
from keypoint_detection.metrics import METRICS, KeypointMetric, Matches
from keypoint_detection.models.detections import predicted_heatmaps
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.predict import Network, TorchNetwork
from keypoint_detection.processes import Processes
from keypoint_detection.report import ReportImage


class EvaluatedImages:
    """Collects detections and labels batch by batch: those of each image, and every metric over all images.

    Args:
        annotations: The evaluated images.
        threshold_distances: Distances within which a detection may match a true keypoint.
        threshold_unit: Their unit: `pixel`, or `image` for fractions of the image's diagonal.

    Attributes:
        images: True keypoints and detections of each image, by its index in the annotations.
    """

    def __init__(
        self, annotations: Annotations, threshold_distances: Sequence[float], threshold_unit: str = "pixel"
    ) -> None:
        self.annotations = annotations
        self.threshold_distances = [float(distance) for distance in threshold_distances]
        self.threshold_unit = threshold_unit
        self.metrics = make_metrics(annotations.channel_names, threshold_distances)
        self.images: dict[int, ReportImage] = {}

    def add(self, batch: Batch, xy: Tensor, scores: Tensor) -> None:
        """Adds a batch.

        Args:
            batch: Images and labels.
            xy: `(B, C, N, 2)` detections in pixels of the image files, NaN for none.
            scores: `(B, C, N)`.
        """
        update_metrics(self.metrics.values(), batch, xy, scores, self.threshold_unit)
        self.images |= images_of_batch(self.annotations, batch, xy, scores)

    def gather(self, processes: Processes) -> None:
        """Adds the images of all other processes; metrics and matches cover all images in any case.

        Args:
            processes: The processes that share the images; all of them have to call this.
        """
        if processes.world == 1:
            return
        for metric in self.metrics.values():
            metric.to(processes.device)  # the device on which processes can exchange its states
        self.images = gather_images(self.images, processes)

    def values(self) -> dict[str, float]:
        """All metrics, by the names that training logs them under."""
        return metric_values(self.metrics)

    def matches(self) -> Matches:
        """All detections, matched to the labels."""
        metric = next(iter(self.metrics.values()))
        with metric.sync_context():
            return metric.matches()


def make_metrics(channel_names: Sequence[str], threshold_distances: Sequence[float]) -> dict[str, KeypointMetric]:
    """Makes all metrics of `METRICS`, by their names there, and checks that no two log a value under the same name.

    Args:
        channel_names: Names of the channels.
        threshold_distances: Distances within which a detection may match a true keypoint.

    Raises:
        InputError: See `metric_values`.
    """
    metric_names(channel_names, threshold_distances)
    return _new_metrics(channel_names, threshold_distances)


def metric_names(channel_names: Sequence[str], threshold_distances: Sequence[float]) -> list[str]:
    """The log names of all values of `METRICS`, taken from metrics that have not seen any image.

    Args:
        channel_names: Names of the channels.
        threshold_distances: Distances within which a detection may match a true keypoint.

    Raises:
        InputError: See `metric_values`.
    """
    metrics = _new_metrics(channel_names, threshold_distances)
    for metric in metrics.values():
        metric.distributed_available_fn = lambda: False  # no communication: each process computes the names itself
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metrics warn that they have not seen any image, but only names matter here
        return list(metric_values(metrics))


def _new_metrics(channel_names: Sequence[str], threshold_distances: Sequence[float]) -> dict[str, KeypointMetric]:
    return {name: metric(channel_names, threshold_distances) for name, metric in METRICS.items()}


def update_metrics(
    metrics: Iterable[KeypointMetric], batch: Batch, xy: Tensor, scores: Tensor, threshold_unit: str
) -> None:
    """Adds a batch to metrics, in the unit of their threshold distances.

    Args:
        metrics: The metrics.
        batch: Images and labels.
        xy: `(B, C, N, 2)` detections in pixels of the image files, NaN for none.
        scores: `(B, C, N)`.
        threshold_unit: `pixel`, or `image` for fractions of the image's diagonal.
    """
    unit = batch.file_diagonals() if threshold_unit == "image" else 1.0
    found, scores, truths = _points(batch, xy, scores)
    found, truths = found.double() / unit, truths.double() / unit
    labelled, indices = batch.labelled.cpu(), batch.indices.cpu()
    for metric in metrics:
        metric.to(xy.device).update(found, scores, truths, labelled, indices)


def _points(batch: Batch, xy: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Detections, scores and true keypoints in pixels of the image files, on the CPU.

    They are float32, as in reports. So if a detection is at exactly the threshold distance from a keypoint, the errors
    that a report counts agree with the recall and precision of the metrics.
    """
    return xy.float().cpu(), scores.float().cpu(), batch.file_keypoints().float()


def metric_values(metrics: Mapping[str, KeypointMetric]) -> dict[str, float]:
    """All values of metrics by log name.

    Args:
        metrics: The metrics by their names in `METRICS`.

    Raises:
        InputError: If two metrics have a value of the same name, or one uses the name of a loss.
    """
    values: dict[str, float] = {}
    owners = dict.fromkeys(("loss", "gt_loss"), "training")
    for name, metric in metrics.items():
        for key, value in metric.compute().items():
            if key in owners:
                raise InputError(f"metric {name}: {key!r} is already logged by {owners[key]}, expected a unique name")
            owners[key], values[key] = name, float(value)
    return values


def images_of_batch(annotations: Annotations, batch: Batch, xy: Tensor, scores: Tensor) -> dict[int, ReportImage]:
    """The images of a batch for a report, by index, without padding and images in which no channel is labelled.

    Args:
        annotations: The images and their labels.
        batch: Some of these images.
        xy: `(B, C, N, 2)` detections in pixels of the image files, NaN for none.
        scores: `(B, C, N)`.
    """
    # This array is kept, so it is copied: memory shared by a data loader's worker keeps a file open.
    labelled = batch.labelled.cpu().numpy().copy()
    points, values, truths = (value.numpy() for value in _points(batch, xy, scores))
    found, true = ~np.isnan(points).any(-1), ~np.isnan(truths).any(-1)
    channels, sizes = range(points.shape[1]), batch.file_sizes()
    return {
        index: ReportImage(
            name=annotations.name(index),
            width=int(sizes[i, 0]),
            height=int(sizes[i, 1]),
            truths=[truths[i, c][true[i, c]] for c in channels],
            xy=[points[i, c][found[i, c]] for c in channels],
            scores=[values[i, c][found[i, c]] for c in channels],
            labelled=labelled[i],
            path=annotations.path(index),
        )
        for i, index in enumerate(batch.indices.tolist())
        if index >= 0 and labelled[i].any()
    }


def gather_images(images: dict[int, ReportImage], processes: Processes) -> dict[int, ReportImage]:
    """The images of all processes, by index; all processes have to call this."""
    return dict(sorted(entry for share in processes.gather(images) for entry in share.items()))


def make_dataset(annotations: Annotations, empty_channels: str, image_size: Sequence[int] | None) -> KeypointsDataset:
    """The samples of a labelled set as validation sees them, without heatmaps.

    Args:
        annotations: The images and their labels.
        empty_channels: See `KeypointsDataset`.
        image_size: Height and width that images are letterboxed into; None keeps their own sizes.
    """
    return KeypointsDataset(
        annotations,
        heatmap_sigma=1.0,  # none is rendered
        heatmap_stride=1,
        image_size=image_size,
        seed=0,  # nothing is drawn
        empty_channels=empty_channels,
        corrupt_images="raise",
        render=False,
    )


def make_loader(
    dataset: KeypointsDataset, sizes: np.ndarray, batch_size: int, num_workers: int, rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """A loader whose batches hold images of one size, in the order of validation.

    Args:
        dataset: The samples.
        sizes: `(N, 2)` int width and height of the image files, 0 if unknown.
        batch_size: Images per batch.
        num_workers: Processes that load data; 0 loads in this one.
        rank: Number of this process.
        world: Number of processes that share the images.
    """
    sampler = EvaluationSampler(fit_sizes(sizes, dataset.image_size), batch_size, rank, world)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate, num_workers=num_workers)


def find_keypoints(network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """Finds the keypoints of a batch: as validation does for a checkpoint, as prediction does for an exported file.

    Args:
        network: A checkpoint, or an exported file.
        batch: Images, letterboxed to the checkpoint's size, or at their own sizes for an exported file.

    Returns:
        `(B, C, N, 2)` xy in pixels of the image files, NaN for none, and `(B, C, N)` scores.
    """
    if isinstance(network, TorchNetwork):
        xy, scores = network.detector.detect(batch.images.to(network.device), batch.sizes)
    else:
        sizes = batch.sizes.tolist()
        pictures = [to_picture(image[:, :h, :w]) for image, (h, w) in zip(batch.images, sizes, strict=True)]
        xy, scores = (torch.from_numpy(np.stack(part)) for part in zip(*network.detect(pictures), strict=True))
    return transform_points(xy.cpu(), batch.transforms), scores


@torch.inference_mode()
def run_network(network: Network, loader: DataLoader[Batch], collected: EvaluatedImages, progress: bool = True) -> None:
    """Finds the keypoints of all batches, and keeps those of the channels in `collected`.

    Args:
        network: A checkpoint, or an exported file.
        loader: The batches.
        collected: Where the detections go.
        progress: Show a progress bar.
    """
    channels = [network.channel_names.index(name) for name in collected.annotations.channel_names]
    hidden = None if progress else True  # None: shown on a terminal only
    bar = tqdm(total=sum(map(len, loader.batch_sampler)), desc="evaluate", unit="image", disable=hidden)
    with bar:
        for batch in loader:
            xy, scores = find_keypoints(network, batch)
            collected.add(batch, xy[:, channels], scores[:, channels])
            bar.update(len(batch.images))


@torch.inference_mode()
def add_heatmaps(detector: KeypointDetector, dataset: KeypointsDataset, images: Mapping[int, ReportImage]) -> None:
    """Predicts the heatmaps of some images again, one image at a time, and stores them in these images.

    Args:
        detector: The detector, in evaluation mode, on its device.
        dataset: The samples, with some or all of the detector's channels.
        images: The images by their index in the data set.
    """
    channels = [list(detector.hparams.keypoint_channels).index(name) for name in dataset.annotations.channel_names]
    stride = detector.hparams.heatmap_stride
    for index, image in images.items():
        sample = dataset[index]
        batch, sizes = sample.images[None].to(detector.device), sample.sizes[None]
        image.heatmaps = predicted_heatmaps(detector(batch), batch, sizes, stride)[0, channels].cpu().numpy()
        cells = torch.tensor([image.heatmaps.shape[2], image.heatmaps.shape[1]]).double() * stride
        right, bottom = transform_points(cells, sample.transforms).tolist()
        image.heatmap_extent = (0.0, 0.0, right, bottom)
