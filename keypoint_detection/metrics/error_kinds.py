"""Classifies every error of a detector, and computes how much average precision fixing each kind would gain.

At a threshold distance d, every wrong detection is of one kind, the first in this list that fits:

- `duplicate`: a true keypoint of its own channel is within d, but a better detection has already found it;
- `imprecise`: a true keypoint of its own channel that no detection has found is within 2 d. The detection claims the
  nearest such keypoint, higher scores first, so that two imprecise detections never share one;
- `duplicate`: a true keypoint of its own channel is within 2 d, but all of these are found or claimed;
- `wrong_channel`: a true keypoint of another channel is within d. The detection claims the nearest of these that is
  neither found nor claimed, if there is any;
- `background`: none of these.

A `miss` is a true keypoint that is neither found nor claimed. In this way, every error is counted once.

The gain from fixing errors follows TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection
Errors"): all errors of one kind are fixed at once, the others stay, and AP is computed again. Duplicates and background
detections are removed; imprecise ones count as correct; those in the wrong channel are removed from it, and those that
claimed a keypoint count as correct in its channel; misses are subtracted from the number of true keypoints. The gains
of the kinds do not add up, because one error can hide another.

I images, C channels, N detections, K true keypoints, R rows. All tensors are on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from keypoint_detection.metrics.average_precision import average_precision
from keypoint_detection.metrics.groups import of_similar_size
from keypoint_detection.metrics.matching import descending_order, match_groups

ERROR_KINDS = ("miss", "duplicate", "imprecise", "wrong_channel", "background")
IMPRECISE_FACTOR = 2.0  # an imprecise detection is within this many threshold distances

NO_DETECTION, TRUE, DUPLICATE, IMPRECISE, WRONG_CHANNEL, BACKGROUND = -1, 0, 1, 2, 3, 4


class Classification(NamedTuple):
    """The kind of every detection, and which true keypoints are missed.

    Attributes:
        kinds: `(I, C, N)` int64: NO_DETECTION, TRUE, DUPLICATE, IMPRECISE, WRONG_CHANNEL or BACKGROUND.
        missed: `(I, C, K)` bool, true keypoints that are neither found nor claimed.
        claimed_channels: `(I, C, N)` int64, the channel in which a WRONG_CHANNEL detection claims a keypoint; else -1.
    """

    kinds: Tensor
    missed: Tensor
    claimed_channels: Tensor


class ErrorTaxonomy(NamedTuple):
    """Number of errors by kind, and the gain from fixing them; rows in the order of `ERROR_KINDS`.

    Attributes:
        counts: `(5, C)` int64, errors of the detections at or above the score thresholds.
        gains: `(5, C)` float64, AP with this kind fixed minus AP, over all detections; NaN without a true keypoint.
        average_precision: `(C,)` float64 in [0, 1], over all detections; NaN for a channel without a true keypoint.
    """

    counts: Tensor
    gains: Tensor
    average_precision: Tensor


def claim(xy: Tensor, scores: Tensor, truths: Tensor, radius: float) -> Tensor:
    """Lets each detection, from high to low scores, take the nearest true keypoint within `radius` that is still free.

    Args:
        xy: `(R, N, 2)` float64 detections in pixels, NaN for none.
        scores: `(R, N)` scores, in any order; among equal ones, the earlier comes first.
        truths: `(R, K, 2)` float64 true keypoints in pixels, NaN for none and for those that are not free.
        radius: largest distance in pixels, inclusive.

    Returns:
        `(R, N)` int64, the index of the true keypoint that each detection took, -1 for none.
    """
    exists = ~xy.isnan().any(-1)
    order = descending_order(scores.masked_fill(~exists, -torch.inf).numpy().T)[: int(exists.sum(-1).amax())]
    x, y = (np.take_along_axis(side.numpy().T, order, axis=0) for side in xy.unbind(-1))
    true_x, true_y = (side.numpy() for side in truths.unbind(-1))
    places = order + scores.shape[1] * np.arange(len(scores))
    distances, taken = np.full((1, scores.numel()), np.nan), np.full((1, scores.numel()), -1)
    match_groups((x, y), (true_x, true_y), np.array([radius]), places, distances, taken)
    return torch.from_numpy(taken).view(scores.shape)


def within(xy: Tensor, truths: Tensor, radius: float) -> Tensor:
    """Bool `(..., N)`: whether any of the truths `(..., K, 2)` is within `radius` of the detection `(..., N, 2)`."""
    near = torch.zeros(xy.shape[:-1], dtype=torch.bool)
    for n in range(xy.shape[-2]):  # one at a time: all pairs at once could take too much memory
        x, y = (truths - xy[..., n : n + 1, :]).unbind(-1)
        near[..., n] = ((x * x + y * y).sqrt() <= radius).any(-1)
    return near


def classify_detections(
    xy: Tensor, scores: Tensor, truths: Tensor, labelled: Tensor, distance: float
) -> Classification:
    """Classifies every detection by the rules at the top of this file.

    Args:
        xy: `(I, C, N, 2)` detections in pixels, NaN for none.
        scores: `(I, C, N)`.
        truths: `(I, C, K, 2)` true keypoints in pixels, NaN for none.
        labelled: `(I, C)` bool; detections and truths of an unlabelled channel are left out.
        distance: threshold distance in pixels.
    """
    xy = xy.double().masked_fill(~labelled[..., None, None], torch.nan)
    truths = truths.double().masked_fill(~labelled[..., None, None], torch.nan)
    kinds = torch.full(scores.shape, NO_DETECTION)
    claimed = torch.full_like(kinds, -1)
    missed = torch.zeros(truths.shape[:-1], dtype=torch.bool)
    # Images with similar numbers of points are processed together, to save padding.
    lengths = torch.stack([_used(xy), _used(truths)], dim=1)
    for images in of_similar_size((lengths * scores.shape[1]).numpy()):
        n, k = lengths[images].amax(0).tolist()
        found = _classify(xy[images, :, :n], scores[images, :, :n], truths[images, :, :k], distance)
        kinds[images, :, :n], missed[images, :, :k], claimed[images, :, :n] = found
    return Classification(kinds, missed, claimed)


def _used(points: Tensor) -> Tensor:
    """How many of the N points of each image, `(I, C, N, 2)`, include all that are not NaN: `(I,)` int64."""
    present = ~points.isnan().any(-1).all(1)
    places = torch.arange(1, present.shape[1] + 1)
    return (present * places).amax(1) if len(places) else torch.zeros(len(points), dtype=torch.int64)


def _classify(xy: Tensor, scores: Tensor, truths: Tensor, distance: float) -> Classification:
    """`classify_detections` for images in which all channels are labelled."""
    n_images, n_channels, n_detections = scores.shape
    radius = IMPRECISE_FACTOR * distance
    wrong = ~xy.isnan().any(-1)
    kinds = torch.where(wrong, BACKGROUND, NO_DETECTION)
    free = truths

    def name(where: Tensor, kind: int) -> None:
        kinds.masked_fill_(where & wrong, kind)
        wrong.masked_fill_(where, False)

    def claim_in_channel(limit: float) -> Tensor:
        nonlocal free
        points = xy.masked_fill(~wrong[..., None], torch.nan)
        taken = claim(points.flatten(0, 1), scores.flatten(0, 1), free.flatten(0, 1), limit)
        free = take_away(free.flatten(0, 1), taken).view_as(free)
        return taken.view_as(scores) >= 0

    name(claim_in_channel(distance), TRUE)
    name(within(xy, truths, distance), DUPLICATE)
    name(claim_in_channel(radius), IMPRECISE)
    name(within(xy, truths, radius), DUPLICATE)
    # From here on, the channels are joined, because a detection may take the keypoint of another channel. Those of its
    # own are farther than 2 d from all detections that remain, so a nearby truth is always another channel's.
    channels = torch.arange(n_channels).repeat_interleave(truths.shape[2])
    points = xy.masked_fill(~wrong[..., None], torch.nan).flatten(1, 2)
    near = within(points, truths.flatten(1, 2), distance)
    points = points.masked_fill(~near[..., None], torch.nan)  # few are left to claim anything, one after another
    taken = claim(points, scores.flatten(1, 2), free.flatten(1, 2), distance)
    free = take_away(free.flatten(1, 2), taken).view_as(free)
    claimed = torch.where(taken >= 0, channels[taken.clamp_min(0)], -1) if truths.shape[2] else taken
    name(near.view_as(wrong), WRONG_CHANNEL)
    return Classification(kinds, ~free.isnan().any(-1), claimed.view(n_images, n_channels, n_detections))


def take_away(truths: Tensor, taken: Tensor) -> Tensor:
    """The truths `(R, K, 2)`, with NaN in place of those whose indices are in `taken` `(R, N)`; -1 stands for none."""
    rows, detections = (taken >= 0).nonzero(as_tuple=True)
    left = truths.clone()
    left[rows, taken[rows, detections]] = torch.nan
    return left


def error_taxonomy(
    xy: Tensor,
    scores: Tensor,
    truths: Tensor,
    labelled: Tensor,
    distance: float,
    score_thresholds: Tensor,
) -> ErrorTaxonomy:
    """Counts the errors of each kind at the score thresholds, and computes the AP that fixing each kind would gain.

    AP ranks all detections, so the gains do too; only the counts depend on the score thresholds.

    Args:
        xy: `(I, C, N, 2)` detections in pixels of the original images, NaN for none.
        scores: `(I, C, N)`.
        truths: `(I, C, K, 2)` true keypoints in pixels of the original images, NaN for none.
        labelled: `(I, C)` bool; detections and truths of an unlabelled channel are left out.
        distance: threshold distance in pixels.
        score_thresholds: `(C,)` lowest score that counts in each channel.
    """
    below = scores < score_thresholds.to(scores)[:, None]
    shown = classify_detections(xy.masked_fill(below[..., None], torch.nan), scores, truths, labelled, distance)
    named = [shown.missed.sum((0, 2))]
    named += [(shown.kinds == kind).sum((0, 2)) for kind in (DUPLICATE, IMPRECISE, WRONG_CHANNEL, BACKGROUND)]
    everything = classify_detections(xy, scores, truths, labelled, distance)
    exists = ~truths.masked_fill(~labelled[..., None, None], torch.nan).isnan().any(-1)
    precisions = [
        torch.stack([_mended(everything, scores, exists, channel, kind) for channel in range(scores.shape[1])])
        for kind in (None, *ERROR_KINDS)
    ]
    return ErrorTaxonomy(torch.stack(named), torch.stack(precisions[1:]) - precisions[0], precisions[0])


def _mended(errors: Classification, scores: Tensor, exists: Tensor, channel: int, mend: str | None) -> Tensor:
    """AP of one channel with all errors of the kind `mend` fixed, a float64 scalar."""
    kinds, channel_scores = errors.kinds[:, channel], scores[:, channel]
    keep, true = kinds != NO_DETECTION, kinds == TRUE
    n_truths = int(exists[:, channel].sum())
    if n_truths == 0:
        return torch.tensor(torch.nan, dtype=torch.float64)
    extra = scores.new_empty(0)
    if mend == "miss":
        n_truths -= int(errors.missed[:, channel].sum())
        if n_truths == 0:  # every keypoint was missed, so finding them gains everything
            return torch.tensor(1.0, dtype=torch.float64)
    elif mend == "imprecise":
        true = true | (kinds == IMPRECISE)
    elif mend == "wrong_channel":
        keep = keep & (kinds != WRONG_CHANNEL)
        extra = scores[errors.claimed_channels == channel]
    elif mend is not None:
        keep = keep & (kinds != {"duplicate": DUPLICATE, "background": BACKGROUND}[mend])
    ranked = torch.cat([channel_scores[keep], extra])
    hits = torch.cat([true[keep], torch.ones_like(extra, dtype=torch.bool)])
    return average_precision(ranked, hits, n_truths)
