"""Finds from its labels which way up things are in a data set: how far images may be rotated and mirrored.

N images, C channels, T triples of channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keypoint_detection.data.annotations import Annotations

# Most values to look at; the rest of a large data set says the same.
_MOST_VALUES = 2_000_000
# A pair of channels counts if this many images show it, and if they are this share of the images that show the most
# common pair (the share also holds for triples): the few images of a rare channel agree by chance.
_FEWEST_IMAGES = 5
_LEAST_SHOWN = 0.1
# Two channels whose centres are closer than this give no direction. The distance is a fraction of the image's longer
# side or, for small objects, of the diagonal of the box around all keypoints.
_NEAREST_IN_BOX = 0.1
_NEAREST = 0.05
# For a single object, rotated or not, the steadiest distances between centres vary by less than this share, relative to
# the diagonal of the box around all keypoints. For independent objects, they vary by more.
_STEADY = 0.3
# Channels whose triples are looked at; values at a time; images that have to show a triple, since few may agree in hand
# by chance; and the least mean absolute sine at its first channel: flatter triples have no hand.
_MOST_CHANNELS = 18
_MOST_SINES = 500_000
_FEWEST_HANDS = 10
_FLATTEST = 0.2


class Orientation(NamedTuple):
    """How well the directions from channel to channel agree across the images; values are in [0, 1].

    Attributes:
        direction: 1 if everything always points the same way, 0 if directions are random.
        mirrored: The same, with a mirrored copy of each image added.
        axis: As `direction`, but opposite directions count as one.
        hand: 1 if three channels always follow one another in the same sense of rotation, however things are rotated; 0
            if they do so either way, or lie on one line.
        mirrored_hand: The same, with a mirrored copy of each image added.
        steady: Whether distances between channels vary as little as those within one object, however it is rotated.
    """

    direction: float
    mirrored: float
    axis: float
    hand: float
    mirrored_hand: float
    steady: bool


def measure_orientation(
    annotations: Annotations, sizes: np.ndarray, mirrored_channels: Sequence[int] | None
) -> Orientation | None:
    """Measures the directions between the centres of channels, over the quarter of the pairs that agree best.

    Args:
        annotations: The labels.
        sizes: `(N, 2)` width and height of the images in pixels; images of unknown size (0) are skipped.
        mirrored_channels: For each channel its position in a mirrored image; None if no channels swap.

    Returns:
        The agreement, or None if no two channels give a direction.
    """
    channels = len(annotations.channel_names)
    known = np.flatnonzero(sizes.min(axis=1) > 0)
    chosen = known[:: max(1, -(-len(known) * channels**2 // _MOST_VALUES))]
    centres = np.full((len(chosen), channels, 2), np.nan)
    diagonals = np.full(len(chosen), np.nan)
    for row, index in enumerate(chosen.tolist()):
        width, height = sizes[index].tolist()
        keypoints = annotations.keypoints(index, width=width, height=height)
        for channel, points in enumerate(keypoints):
            if len(points):
                centres[row, channel] = points.mean(axis=0) / max(width, height)
        if sum(map(len, keypoints)) > 1:
            diagonals[row] = np.hypot(*np.ptp(np.concatenate(keypoints), axis=0)) / max(width, height)
    order = list(mirrored_channels) if mirrored_channels is not None else list(range(channels))
    flipped = centres[:, order] * np.array([-1.0, 1.0])
    first, second = np.triu_indices(channels, k=1)
    vectors, flipped_vectors = (c[:, second] - c[:, first] for c in (centres, flipped))
    lengths = np.hypot(*np.moveaxis(vectors, -1, 0))
    shown = (~np.isnan(lengths)).sum(axis=0)
    usable = shown >= max(_FEWEST_IMAGES, _LEAST_SHOWN * shown.max(initial=0))
    nearest = min(_NEAREST, _NEAREST_IN_BOX * np.nanmedian(diagonals)) if usable.any() else _NEAREST
    usable[usable] = np.nanmedian(lengths[:, usable], axis=0) >= nearest
    if not usable.any():
        return None
    units, flipped_units = _units(vectors[:, usable]), _units(flipped_vectors[:, usable])
    means = np.nanmean(units, axis=0)
    flipped_means = means.copy()
    seen = ~np.isnan(flipped_units).all(axis=0)  # the channels that a pair mirrors to may share no image
    flipped_means[seen] = np.nanmean(flipped_units[:, seen], axis=0)
    joined = np.abs(means + flipped_means) / 2
    directions, axes = np.abs(means), np.abs(np.nanmean(units**2, axis=0))
    best, best_axes = _best_quarter(directions), _best_quarter(axes)
    return Orientation(
        float(directions[best].mean()),
        float(joined[best].mean()),
        float(axes[best_axes].mean()),
        *_hands(centres, flipped),
        steady=_are_steady(lengths[:, usable] / np.maximum(diagonals, 1e-9)[:, None]),
    )


def _are_steady(distances: np.ndarray) -> bool:
    """Whether the quarter of the pairs whose distances `(N, P)` vary least belongs to one object."""
    spreads = np.nanstd(distances, axis=0) / np.nanmean(distances, axis=0)
    return float(spreads[_best_quarter(-spreads)].mean()) < _STEADY


def _hands(centres: np.ndarray, flipped: np.ndarray) -> tuple[float, float]:
    """How well the hands of triples agree, without and with mirrored copies, over the quarter that agrees best.

    Args:
        centres: `(N, C, 2)` centres of the channels, NaN for none.
        flipped: The same for the mirrored images.
    """
    labelled = (~np.isnan(centres[..., 0])).sum(axis=0)
    channels = np.argsort(-labelled, kind="stable")[:_MOST_CHANNELS].tolist()
    triples = np.array(list(itertools.combinations(channels, 3)), dtype=int).reshape(-1, 3)
    step = max(1, len(centres) * len(triples) // _MOST_SINES)
    sines, flipped_sines = (_sines(c[::step], triples) for c in (centres, flipped))
    shown = (~np.isnan(sines)).sum(axis=0)
    usable = shown >= max(_FEWEST_HANDS, _LEAST_SHOWN * shown.max(initial=0))
    usable[usable] = np.nanmean(np.abs(sines[:, usable]), axis=0) >= _FLATTEST
    if not usable.any():
        return 0.0, 0.0
    means, flipped_means = (
        np.nansum(values[:, usable], axis=0) / np.maximum(np.nansum(np.abs(values[:, usable]), axis=0), 1e-9)
        for values in (sines, flipped_sines)
    )
    hands, joined = np.abs(means), np.abs(means + flipped_means) / 2
    best = _best_quarter(hands)
    return float(hands[best].mean()), float(joined[best].mean())


def _sines(centres: np.ndarray, triples: np.ndarray) -> np.ndarray:
    """`(N, T)` sine of the angle at the first of three centres, from the second to the third; NaN if one is missing."""
    first, second, third = (centres[:, triples[:, place]] for place in range(3))
    sides = [_units(side - first) for side in (second, third)]
    return (sides[0].conj() * sides[1]).imag


def _units(vectors: np.ndarray) -> np.ndarray:
    """Directions of `(N, P, 2)` vectors as complex numbers of length 1."""
    numbers = vectors[..., 0] + 1j * vectors[..., 1]
    lengths = np.maximum(np.abs(numbers), 1e-9)
    return numbers.real / lengths + 1j * (numbers.imag / lengths)


def _best_quarter(values: np.ndarray) -> np.ndarray:
    """Positions of the largest quarter of the values, at least one."""
    return np.argsort(values)[-max(1, len(values) // 4) :]
