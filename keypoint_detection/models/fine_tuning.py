"""Copies trained weights to a detector whose channels may differ.

C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

from torch import Tensor

from keypoint_detection.models.checkpoint_file import load_checkpoint

# Weights whose first dimension is the channel.
_PER_CHANNEL = ("head.weight", "head.bias")


class MatchReport(NamedTuple):
    """What was copied from trained weights and what was not.

    Attributes:
        kept_channels: Channels whose rows of the head were copied.
        new_channels: Channels that start from scratch, because the trained detector does not have them, or the input
            of its head has another shape.
        dropped_channels: Channels of the trained detector that were not copied.
        missing: Weights of the new detector that start from scratch: the trained one has none of this name and shape.
        unused: Weights of the trained detector that were not used.
    """

    kept_channels: list[str]
    new_channels: list[str]
    dropped_channels: list[str]
    missing: list[str]
    unused: list[str]


def match_weights(
    own: Mapping[str, Tensor], own_channels: list[str], checkpoint: str | PathLike[str] | Mapping[str, Any]
) -> tuple[dict[str, Tensor], MatchReport]:
    """Choose between a detector's own value and a trained one for each weight.

    Args:
        own: State of the detector that will be trained.
        own_channels: Its channels, C names.
        checkpoint: The trained detector: a file that `load_checkpoint` reads, or what it read.

    Returns:
        The state to load, and what was copied. The score thresholds are left out, because they depend on the data.

    Raises:
        InputError: when the file is not a checkpoint of a detector.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else load_checkpoint(checkpoint)
    own, trained = (
        {name: value for name, value in weights.items() if name != "score_thresholds"}
        for weights in (own, content["state_dict"])
    )
    trained_channels = list(content["hyper_parameters"]["keypoint_channels"])
    state = dict(own)
    missing = []
    head_fits = all(name in trained and trained[name].shape[1:] == own[name].shape[1:] for name in _PER_CHANNEL)
    kept = [name for name in own_channels if head_fits and name in trained_channels]
    for name, value in own.items():
        source = trained.get(name)
        if name in _PER_CHANNEL and kept:
            state[name] = _match_rows(value, own_channels, source, trained_channels)
        elif name not in _PER_CHANNEL and source is not None and source.shape == value.shape:
            state[name] = source
        else:
            missing.append(name)
    unused = [name for name, value in trained.items() if name not in own or name in missing]
    new, dropped = ([name for name in names if name not in kept] for names in (own_channels, trained_channels))
    return state, MatchReport(kept, new, dropped, missing, unused)


def _match_rows(own: Tensor, own_channels: list[str], trained: Tensor, trained_channels: list[str]) -> Tensor:
    """Replace the rows `(C, ...)` of channels that both detectors have."""
    rows = own.clone()
    for row, name in enumerate(own_channels):
        if name in trained_channels:
            rows[row] = trained[trained_channels.index(name)]
    return rows
