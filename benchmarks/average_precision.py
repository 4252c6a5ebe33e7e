"""Average precision: this library against Python objects in a sorted list, and how the cost grows."""

from __future__ import annotations

import copy
import math
import tracemalloc
from dataclasses import dataclass

import torch
from harness import Row, compare, main, milliseconds

from keypoint_detection import KeypointAveragePrecision
from keypoint_detection.metrics import AveragePrecision

DISTANCES = (2.0, 4.0)
BATCH_SIZE = 16


@dataclass
class Keypoint:
    """A true keypoint of the baseline."""

    x: float
    y: float

    def distance_to(self, other: Keypoint) -> float:
        """Distance in pixels."""
        return math.sqrt((self.x - other.x) ** 2 + (self.y - other.y) ** 2)


@dataclass
class Detection(Keypoint):
    """A detection of the baseline."""

    score: float


@dataclass
class ClassifiedDetection(Detection):
    """A detection of the baseline that has been classified as right or wrong."""

    threshold_distance: float
    true_positive: bool


def with_objects(
    predictions: list[tuple[torch.Tensor, torch.Tensor]], targets: list[torch.Tensor]
) -> dict[float, float]:
    """Average precision as it is often written: objects per image and distance, with a copy of the true keypoints."""
    truths = [[Keypoint(x, y) for x, y in image.tolist()] for image in targets]
    detections = [
        [Detection(x, y, score) for (x, y), score in zip(xy.tolist(), scores.tolist(), strict=True)]
        for xy, scores in predictions
    ]
    total = sum(map(len, truths))
    result = {}
    for distance in DISTANCES:
        classified = []
        for image, keypoints in zip(detections, truths, strict=True):
            classified.extend(classify(image, keypoints, distance))
        result[distance] = area_under_curve(classified, total)
    return result


def classify(
    detections: list[Detection], truths: list[Keypoint], threshold_distance: float
) -> list[ClassifiedDetection]:
    """Match the detections of one image."""
    left = copy.deepcopy(truths)
    result = []
    for detection in sorted(detections, key=lambda detection: detection.score, reverse=True):
        nearest = min(left, key=detection.distance_to, default=None)
        right = nearest is not None and detection.distance_to(nearest) <= threshold_distance
        if right:
            left.remove(nearest)
        result.append(ClassifiedDetection(detection.x, detection.y, detection.score, threshold_distance, right))
    return result


def area_under_curve(detections: list[ClassifiedDetection], num_truths: int) -> float:
    """Precision and recall at every detection, then the area under the envelope."""
    precisions, recalls, hits = [], [0.0], 0
    ordered = sorted(detections, key=lambda detection: detection.score, reverse=True)
    for rank, detection in enumerate(ordered, start=1):
        hits += detection.true_positive
        precisions.append(hits / rank)
        recalls.append(hits / num_truths)
    for position in range(len(precisions) - 2, -1, -1):
        precisions[position] = max(precisions[position], precisions[position + 1])
    return sum(
        precision * (recall - before)
        for precision, before, recall in zip(precisions, recalls, recalls[1:], strict=False)
    )


def random_case(images: int) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
    """Images with 8 true keypoints and 20 detections in descending score, as decoded, 8 of which are near true ones."""
    generator = torch.Generator().manual_seed(0)
    truths = torch.rand(images, 8, 2, generator=generator) * 256
    near = truths + 2 * torch.randn(images, 8, 2, generator=generator)
    xy = torch.cat([near, torch.rand(images, 12, 2, generator=generator) * 256], dim=1)
    scores, _ = torch.rand(images, 20, generator=generator).sort(dim=1, descending=True)
    xy = xy.gather(1, torch.rand(images, 20, generator=generator).argsort(dim=1)[..., None].expand(-1, -1, 2))
    return list(zip(xy, scores, strict=True)), list(truths)


def ours(
    metric: KeypointAveragePrecision,
    predictions: list[tuple[torch.Tensor, torch.Tensor]],
    targets: list[torch.Tensor],
) -> dict[float, float]:
    """This library's way, with the same lists as the baseline."""
    metric.reset()
    metric.update(predictions, targets)
    return metric.compute()


def batches(
    predictions: list[tuple[torch.Tensor, torch.Tensor]], targets: list[torch.Tensor]
) -> list[tuple[torch.Tensor, ...]]:
    """The same data in batches, as validation in training passes them on."""
    xy = torch.stack([positions for positions, _ in predictions])[:, None]
    scores = torch.stack([values for _, values in predictions])[:, None]
    truths = torch.stack(targets)[:, None]
    labelled, indices = torch.ones(len(xy), 1, dtype=torch.bool), torch.arange(len(xy))
    parts = (tensor.split(BATCH_SIZE) for tensor in (xy, scores, truths, labelled, indices))
    return list(zip(*parts, strict=True))


def as_in_training(metric: AveragePrecision, parts: list[tuple[torch.Tensor, ...]]) -> dict[str, float]:
    """This library's way, as in validation: one update for each batch, and all values that are logged."""
    metric.reset()
    for part in parts:
        metric.update(*part)
    return metric.compute()


def run() -> list[Row]:
    """Compare on 500 images, then grow to a million detections."""
    predictions, targets = random_case(500)
    parts = batches(predictions, targets)
    metric, logged = KeypointAveragePrecision(DISTANCES), AveragePrecision(("keypoints",), DISTANCES)
    expected = with_objects(predictions, targets)
    found = as_in_training(logged, parts)
    differences = [abs(ours(metric, predictions, targets)[distance] - value) for distance, value in expected.items()]
    differences += [abs(found[f"meanAP/d={distance:g}"] - value) for distance, value in expected.items()]
    rows = []
    for name, callable_ in (
        ("average precision", lambda: ours(metric, predictions, targets)),
        (f"average precision, batches of {BATCH_SIZE}", lambda: as_in_training(logged, parts)),
    ):
        for once in (False, True):
            row = Row(
                name=f"{name}, called once" if once else name,
                work="500 images, 20 detections and 8 true keypoints each, 2 distances",
                milliseconds=0,
                baseline="Python objects, sort and loop",
                target=50,
                note=f"difference {max(differences):.0e}",
            )
            rows.append(compare(row, callable_, lambda: with_objects(predictions, targets), repeats=15, once=once))
    return [*rows, *(growth(exponent) for exponent in (4, 5, 6))]


def growth(exponent: int) -> Row:
    """Time and memory for `10 ** exponent` detections."""
    count = 10**exponent
    predictions, targets = random_case(count // 20)
    metric = KeypointAveragePrecision(DISTANCES)
    elapsed = min(milliseconds(lambda: ours(metric, predictions, targets)) for _ in range(3))
    tracemalloc.start()  # sees the numpy arrays, which hold nearly all of the memory
    ours(metric, predictions, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Row(
        name="average precision, growth",
        work=f"10^{exponent} detections, 2 distances",
        milliseconds=elapsed,
        note=f"{1e6 * elapsed / count / math.log2(count):.0f} ns / (n log2 n), at most {peak / count:.0f} bytes / n",
    )


if __name__ == "__main__":
    main({"average_precision": run}, __doc__)
