"""Builds and parses the names that values are logged under, such as `validation/AP/<channel>/d=2`.

A name is `<stage>/<kind>/<channel>/d=<distance>`; every part but the kind is optional. Users' dashboards and sweeps
refer to values by these names, so they must not change.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Only these kinds may end in a distance; in the names of others, `d=2` can only be a channel.
_KINDS_WITH_DISTANCE = ("AP", "meanAP")
_DISTANCE = re.compile(r"d=(\d+(?:\.\d+)?(?:e[+-]\d+)?)")


class LogName(NamedTuple):
    """What a log name says.

    Attributes:
        kind: What was measured: `loss`, `AP`, `median_distance`, ...
        channel: None for all channels together. It may contain slashes, or be empty.
        distance: Threshold distance, None if the value has none.
        stage: `train`, `validation`, `best` (the best checkpoint on the validation set) or `test`; None if the name has
            none, like those of metrics and of the learning rate.
    """

    kind: str
    channel: str | None = None
    distance: float | None = None
    stage: str | None = None


def log_name(kind: str, channel: str | None = None, distance: float | None = None, stage: str | None = None) -> str:
    """Builds a log name.

    Args:
        kind: What was measured; for all arguments, see `LogName`.
        channel: Name of the channel.
        distance: Threshold distance.
        stage: Stage of the training.
    """
    parts = (stage, kind, channel, None if distance is None else f"d={distance:g}")
    return "/".join(part for part in parts if part is not None)


def parse_log_name(name: str) -> LogName:
    """Parses a name that begins with a stage, or consists of a kind only, such as `learning_rate`."""
    first, *parts = name.split("/")
    if not parts:
        return LogName(first)
    kind, *parts = parts
    distance = _DISTANCE.fullmatch(parts[-1]) if parts and kind in _KINDS_WITH_DISTANCE else None
    if distance:
        parts.pop()
    return LogName(kind, "/".join(parts) if parts else None, float(distance[1]) if distance else None, first)
