"""What the metrics share: states that are exact across processes, and the matching of detections to true keypoints.

B batch, C channels, N detections and K true keypoints of one channel of one image, T threshold distances, V visits (an
image that was passed to `update`), D detections in total, G groups (a channel of an image).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from keypoint_detection.metrics.groups import of_similar_size, padded_rows
from keypoint_detection.metrics.matching import descending_order, is_descending, match_groups

# Maximum number of batches that wait before they are added to the rows, without their missing keypoints.
_BATCHES_AT_ONCE = 256
# Follows the tensors of each waiting batch. A collection of metrics compares states after the first update, and from
# then on updates only one of the metrics with equal states. NaN keeps the states from being equal.
_UNEQUAL = torch.tensor(math.nan, device="cpu")
# A waiting batch is this many entries of one flat list: xy, scores, truths, labelled, indices and `_UNEQUAL`. For
# torchmetrics, a state is a tensor or a flat list of tensors, and only states are reset, shared, merged and stored.
_ENTRIES = 6


class Matches(NamedTuple):
    """Every detection of every image, matched to the true keypoints.

    Attributes:
        channels: `(D,)` int64, the channel of each detection, in ascending order.
        images: `(D,)` int64, the index of its image.
        scores: `(D,)` float64.
        distances: `(D, T)` float64, pixels to the true keypoint it matched within each threshold distance, NaN if none.
        num_truths: `(C,)` int64, the number of true keypoints of each channel.
    """

    channels: Tensor
    images: Tensor
    scores: Tensor
    distances: Tensor
    num_truths: Tensor

    def of_channel(self, channel: int) -> tuple[Tensor, Tensor, int]:
        """Scores `(n,)`, distances `(n, T)` and number of true keypoints of one channel."""
        first, last = self.channels.numpy().searchsorted([channel, channel + 1]).tolist()
        return self.scores[first:last], self.distances[first:last], int(self.num_truths[channel])


class KeypointMetric(Metric):
    """Collects detections and true keypoints, and matches them when the value is computed.

    Detections are kept as rows on the CPU, without padding. All processes exchange their rows, and an image that
    several processes saw (or that one saw twice) counts once, so the value is the same as with a single process.

    Args:
        channel_names: names of the channels, in the order of the tensors.
        threshold_distances: distances in pixels within which a detection may match a true keypoint.
    """

    full_state_update = False
    is_differentiable = False
    indices: list[Tensor] | Tensor  # (V,) int64 index of the image, -1 for an image that is never seen twice
    counts: list[Tensor] | Tensor  # (V, C, 2) int64 number of detections and of true keypoints
    detections: list[Tensor] | Tensor  # (D, 3) float64 x, y, score; ordered by visit, channel
    truths: list[Tensor] | Tensor  # (number of true keypoints, 2) float64 xy; ordered by visit, channel
    waiting: list[Tensor]  # `_ENTRIES` of each batch that is not among the rows yet

    def __init__(self, channel_names: Sequence[str], threshold_distances: Sequence[float]) -> None:
        super().__init__()
        if not channel_names or not threshold_distances:
            raise ValueError("a keypoint metric needs at least one channel and one threshold distance")
        self.channel_names = tuple(channel_names)
        self.threshold_distances = tuple(float(distance) for distance in threshold_distances)
        # The first state, because torchmetrics 1.6.0 compares only this one. Empty when processes exchange states.
        self.add_state("waiting", default=[], dist_reduce_fx=None)
        for state in self._empty_states():
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def _empty_states(self) -> dict[str, Tensor]:
        """The rows of each state before the first update."""
        return {
            "indices": torch.zeros(0, dtype=torch.int64),
            "counts": torch.zeros(0, len(self.channel_names), 2, dtype=torch.int64),
            "detections": torch.zeros(0, 3, dtype=torch.float64),
            "truths": torch.zeros(0, 2, dtype=torch.float64),
        }

    def update(self, xy: Tensor, scores: Tensor, truths: Tensor, labelled: Tensor, indices: Tensor) -> None:
        """Add a batch of images.

        Args:
            xy: `(B, C, N, 2)` detections in pixels of the original images, NaN for none.
            scores: `(B, C, N)` their scores.
            truths: `(B, C, K, 2)` true keypoints in the same pixels, NaN for none.
            labelled: `(B, C)` bool; channels of images with False are left out.
            indices: `(B,)` int64, the index of each image in the dataset; -1 for one that is never repeated.
        """
        # There may be many small batches, so little is done for each of them.
        if len(self.waiting) >= _ENTRIES * _BATCHES_AT_ONCE:
            self._pack()
        self.waiting.extend((*map(_on_cpu, (xy, scores, truths, labelled, indices)), _UNEQUAL))

    def _pack(self) -> None:
        """Add the waiting batches to the rows."""
        if not self.waiting:
            return
        xy, scores, truths, labelled, indices = (self.waiting[part::_ENTRIES] for part in range(_ENTRIES - 1))
        self.waiting.clear()  # in place, like appending rows: metrics that a collection groups explicitly share both
        groups = torch.cat(labelled).reshape(-1)
        detections = torch.cat([_rows_of_batches(xy, 2), _rows_of_batches(scores, 1)], dim=1)
        detections, num_detections = drop_missing(detections, _lengths(scores), groups)
        true_rows, num_truths = drop_missing(_rows_of_batches(truths, 2), _lengths(truths), groups)
        counts = torch.stack([num_detections, num_truths], dim=1).view(-1, len(self.channel_names), 2)
        self._append(torch.cat(indices), counts, detections, true_rows)

    def sync(self, *args: Any, **arguments: Any) -> None:
        """Gather the states of all processes; see the torchmetrics class."""
        self._pack()
        super().sync(*args, **arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> KeypointMetric:
        """Move the metric, but not its rows: these stay on the CPU until processes exchange them."""
        return super()._apply(fn, exclude_state=(*exclude_state, *self._empty_states(), "waiting"))

    def _append(self, indices: Tensor, counts: Tensor, detections: Tensor, truths: Tensor) -> None:
        """Add rows to the states."""
        self.indices.append(indices)
        self.counts.append(counts)
        self.detections.append(detections)
        self.truths.append(truths)

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None) -> None:
        """Gather the states of all processes; see the torchmetrics class."""
        # A process without any images still has to take part with tensors of the right type and number of dimensions,
        # and the states have to be where the backend of the processes can read them (on the GPU for NCCL).
        for name, empty in self._empty_states().items():
            setattr(self, name, [dim_zero_cat([empty, *getattr(self, name)]).to(self.device)])
        arguments = {} if dist_sync_fn is None else {"dist_sync_fn": dist_sync_fn}
        super()._sync_dist(process_group=process_group, **arguments)
        for name in self._empty_states():
            setattr(self, name, [dim_zero_cat(getattr(self, name)).cpu()])

    def matches(self) -> Matches:
        """Match all detections; an image seen twice counts once. Inside `compute`, this covers all processes."""
        self._pack()
        # numpy, because a process that shares its cores with data workers waits a long time for the threads of torch
        indices, counts, detections, truths = (
            _joined(getattr(self, name), empty).numpy() for name, empty in self._empty_states().items()
        )
        channels = len(self.channel_names)
        counts = counts.reshape(-1, 2)
        starts = counts.cumsum(axis=0) - counts
        kept = _first_visits(indices).repeat(channels)
        counts_of_kept = counts * kept[:, None]
        distances = _match_groups(counts_of_kept, starts, detections, truths, np.array(self.threshold_distances))
        scores, num_detections = detections[:, 2], counts_of_kept[:, 0]
        if channels > 1 or not kept.all():
            by_channel = np.arange(len(counts)).reshape(-1, channels).T.ravel()
            num_detections = num_detections.take(by_channel)
            rows = _rows_of_groups(starts[:, 0].take(by_channel), num_detections)
            scores, distances = scores.take(rows), distances.take(rows, axis=1)
        return Matches(
            channels=torch.from_numpy(np.arange(channels).repeat(num_detections.reshape(channels, -1).sum(axis=1))),
            images=torch.from_numpy(np.tile(indices, channels).repeat(num_detections)),
            scores=torch.from_numpy(np.ascontiguousarray(scores)),
            distances=torch.from_numpy(distances).T,
            num_truths=torch.from_numpy(counts_of_kept[:, 1].reshape(-1, channels).sum(axis=0)),
        )


def _on_cpu(tensor: Tensor) -> Tensor:
    """The tensor on the CPU and detached; most already are, and checking that is faster than calling both."""
    tensor = tensor if tensor.is_cpu and not tensor.requires_grad else tensor.detach().cpu()
    # Memory shared with a worker of a loader keeps a file open.
    return tensor.clone() if tensor.untyped_storage().is_shared() else tensor


def _joined(state: list[Tensor], empty: Tensor) -> Tensor:
    return state[0] if len(state) == 1 else torch.cat([empty, *state])


def _match_groups(
    counts: np.ndarray, starts: np.ndarray, detections: np.ndarray, truths: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Match the rows of each group.

    Args:
        counts: `(G, 2)` number of detections and of true keypoints.
        starts: `(G, 2)` first row of each group's detections and of its true keypoints.
        detections: `(D, 3)` rows of x, y, score.
        truths: `(n, 2)` rows of xy.
        limits: `(T,)` threshold distances.

    Returns:
        `(T, D)` distances to the matched true keypoints, NaN for none.
    """
    # The last column is NaN: smaller groups are padded with it. It is dropped at the end.
    x, y, scores = _columns(detections)
    true_x, true_y = _columns(truths)
    distances = np.full((len(limits), len(x)), np.nan)
    in_order = is_descending(scores[:-1], starts[counts[:, 0] > 0, 0])
    groups = np.flatnonzero((counts > 0).all(axis=1))
    for similar in of_similar_size(counts[groups]):
        chunk = groups[similar]
        rows, truth_rows = (padded_rows(starts[chunk, column], counts[chunk, column]) for column in (0, 1))
        if not in_order:
            rows = np.take_along_axis(rows, descending_order(scores.take(rows)), axis=0)
        xy, true_xy = (x.take(rows), y.take(rows)), (true_x.take(truth_rows.T), true_y.take(truth_rows.T))
        match_groups(xy, true_xy, limits, rows, distances)
    return distances[:, :-1]


def _columns(rows: np.ndarray) -> np.ndarray:
    """Rows `(n, d)` -> columns `(d, n + 1)`, followed by NaN."""
    columns = np.full((rows.shape[1], len(rows) + 1), np.nan)
    columns[:, :-1] = rows.T
    return columns


def _rows_of_batches(batches: Sequence[Tensor], columns: int) -> Tensor:
    """The rows of batches `(B, C, N, ...)`, concatenated: `(n, columns)` float64."""
    if len({batch.shape[2] for batch in batches}) > 1:
        batches = [batch.reshape(-1) for batch in batches]
    return torch.cat(batches).double().reshape(-1, columns)


def _lengths(batches: Sequence[Tensor]) -> Tensor:
    """N for each group of batches `(B, C, N, ...)`, `(G,)`."""
    return torch.from_numpy(
        np.repeat([batch.shape[2] for batch in batches], [batch.shape[:2].numel() for batch in batches])
    )


def drop_missing(rows: Tensor, lengths: Tensor, labelled: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Drop rows with NaN, and those of groups that are not labelled.

    Args:
        rows: `(n, d)` rows of all groups in turn.
        lengths: `(G,)` number of rows of each group.
        labelled: `(G,)` bool; None if all are.

    Returns:
        The remaining rows, and their number in each group.
    """
    # numpy, because its calls on small arrays take a fraction of the time of torch's
    missing = np.isnan(rows.numpy())
    all_labelled = labelled is None or labelled.all()
    if all_labelled and not missing.any():
        return rows, lengths
    present = ~missing.any(axis=1)
    if not all_labelled:
        present &= labelled.numpy().repeat(lengths.numpy())
    groups = np.arange(len(lengths)).repeat(lengths.numpy())
    counts = np.bincount(groups[present], minlength=len(lengths))
    return torch.from_numpy(rows.numpy()[present]), torch.from_numpy(counts)


def _first_visits(indices: np.ndarray) -> np.ndarray:
    """`(V,)` sample indices -> `(V,)` bool, True at the first visit of each sample; -1 is always a first visit."""
    first = np.ones(len(indices), dtype=bool)
    if (indices < 0).all():
        return first
    order = indices.argsort(kind="stable")
    ordered = indices[order]
    first[order[1:]] = (ordered[1:] != ordered[:-1]) | (ordered[1:] < 0)
    return first


def _rows_of_groups(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows of all groups in turn: `(G,)` first row and number of rows -> `(sum of counts,)`."""
    shift = starts - (counts.cumsum() - counts)
    return np.arange(counts.sum()) + shift.repeat(counts)
