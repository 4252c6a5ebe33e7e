"""The names that values are logged by, as in `validation/AP/<channel>/d=2`: built and taken apart.

A name is `<stage>/<kind>/<channel>/d=<distance>`, of which only the kind is always there. Users' panels and sweeps know
values by these names, so they stay as they are.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Whose names may end in a distance; a channel of the others may itself be called `d=2`.
_KINDS_WITH_DISTANCE = ("AP", "meanAP")
_DISTANCE = re.compile(r"d=(\d+(?:\.\d+)?(?:e[+-]\d+)?)")


class LogName(NamedTuple):
    """What a log name says.

    Attributes:
        kind: What was measured: `loss`, `AP`, `median_distance`, ...
        channel: None for all channels together. It may hold slashes, or be empty.
        distance: Threshold distance, None if the value has none.
        stage: `train`, `validation`, `best` (the best checkpoint on the validation set) or `test`; None if it is not
            said, as in the names of metrics and of the learning rate.
    """

    kind: str
    channel: str | None = None
    distance: float | None = None
    stage: str | None = None


def log_name(kind: str, channel: str | None = None, distance: float | None = None, stage: str | None = None) -> str:
    """Builds the name that says this.

    Args:
        kind: See `LogName`, as for the others.
        channel: Name of the channel.
        distance: Threshold distance.
        stage: Stage of the training.
    """
    parts = (stage, kind, channel, None if distance is None else f"d={distance:g}")
    return "/".join(part for part in parts if part is not None)


def parse_log_name(name: str) -> LogName:
    """Takes a name apart that begins with a stage, or is a kind alone, as `learning_rate`."""
    first, *parts = name.split("/")
    if not parts:
        return LogName(first)
    kind, *parts = parts
    distance = _DISTANCE.fullmatch(parts[-1]) if parts and kind in _KINDS_WITH_DISTANCE else None
    if distance:
        parts.pop()
    return LogName(kind, "/".join(parts) if parts else None, float(distance[1]) if distance else None, first)
