"""How an evaluation reads its images: in larger batches than training, and small sets only once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader

from keypoint_detection.batch import Batch
from keypoint_detection.data.dataset import KeypointsDataset

# Images in a batch, unless training has larger ones, and the bytes of images and heatmaps that such a batch may have.
# Without gradients, the network needs much less memory per image than in training.
_BATCH = 16
_BATCH_BYTES = 2**26
# Bytes of all images and heatmaps up to which batches are kept.
_KEPT_BYTES = 2**28


class EvaluationLoader(DataLoader[Batch]):
    """A loader that reads the same batches in every pass, and keeps them after the first one if they are small.

    It does so without workers only, as these read while the network computes, and if the data set caches its images.
    Batches that are kept must not be written to.
    """

    _kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """The batches, in the same order in every pass."""
        if self._kept is not None:
            return iter(self._kept)
        caches = isinstance(self.dataset, KeypointsDataset) and self.dataset.cache is not None
        return self._read() if caches and self.num_workers == 0 else super().__iter__()

    def _read(self) -> Iterator[Batch]:
        kept: list[Batch] = []
        size = 0
        for batch in super().__iter__():
            size += sum(tensor.nbytes for tensor in batch if tensor is not None)
            if size <= _KEPT_BYTES:
                kept.append(batch)
            else:
                kept.clear()
            if len(kept) == len(self):  # and not after the loop: Lightning never asks for a batch after the last one
                self._kept = kept
            yield batch


def evaluation_batch_size(training: int, sizes: np.ndarray, channels: int, stride: int) -> int:
    """Chooses how many images an evaluation passes to the network at once: larger batches take less time per image.

    Args:
        training: images in a batch of training.
        sizes: `(N, 2)` int size of each image as it enters the network, in pixels; 0 where unknown.
        channels: heatmaps per image.
        stride: pixels per cell of the heatmaps.

    Returns:
        `training`, or up to 16 if images and heatmaps are small.
    """
    floats = max(1, int(sizes.prod(axis=1).max())) * (3 + channels / stride**2)
    return max(training, min(_BATCH, int(_BATCH_BYTES / (4 * floats))))
