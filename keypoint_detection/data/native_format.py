"""The project's own JSON: `{"dataset": [{"image_path": ..., "<channel>": [[u, v] or [u, v, d], ...], ...}]}`.

N images, C channels, T keypoints of all images together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from keypoint_detection.data.annotations import Annotations, PackedStrings
from keypoint_detection.data.channels import parse_channels, suggestion
from keypoint_detection.data.json_stream import JsonStream
from keypoint_detection.errors import InputError

COORDINATES = ("blender", "normalized", "pixel")
# What an entry may hold beside its channels.
PATH_KEY = "image_path"
METADATA_KEYS = frozenset({PATH_KEY, "scores"})


class _Part(NamedTuple):
    """The columns of some consecutive entries; `uvd` has NaN for a depth that the file does not give."""

    names: PackedStrings
    counts: np.ndarray  # (entries * C,)
    uvd: np.ndarray  # (keypoints, 3) float32, or (keypoints, 2) if none of them has a depth


def read_native(
    stream: JsonStream, image_root: Path, coordinates: str, spec: Sequence[str] | str | None
) -> Annotations:
    """Reads all images of a file in the project's own format.

    Args:
        stream: the file.
        image_root: the folder that image paths are relative to.
        coordinates: "blender", "normalized" or "pixel", unless the file says it for itself.
        spec: the channels to read, as in `Annotations.select_channels`.

    Raises:
        InputError: naming file and entry, for anything that is not as the format says.
    """
    parts: list[_Part] | None = None
    channels: list[str] = []
    for key in stream:
        if key == "coordinates":
            coordinates = stream.value()
            if coordinates not in COORDINATES:
                raise InputError(
                    f'{stream.path}: "coordinates" is {_shown(coordinates)}, expected one of: {", ".join(COORDINATES)}'
                )
        elif key == "dataset":
            parts, channels = _read_entries(stream, spec)
    if not parts:
        what = 'expected the key "dataset" at the top level' if parts is None else "the data set is empty"
        raise InputError(f"{stream.path}: {what}")
    return _join(parts, channels, stream.path, image_root, coordinates).select_channels(spec)


def _read_entries(stream: JsonStream, spec: Sequence[str] | str | None) -> tuple[list[_Part], list[str]]:
    parts: list[_Part] = []
    channels: list[str] = []
    number = 0
    for entries in stream.items():
        if number == 0:
            channels = _choose_channels(entries[0], spec, stream.path)
        try:
            part = _columns(entries, channels, complete=spec is None)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            part = None
        if part is None:
            _name_culprit(entries, channels, spec is None, number, stream.path)
            part = _columns(entries, channels, complete=False)
            assert part is not None, "an entry passed the slow check and failed the fast one"
        parts.append(part)
        number += len(entries)
    return parts, channels


def _choose_channels(entry: Any, spec: Sequence[str] | str | None, source: Path) -> list[str]:
    """The channels to read: what was asked for, or every list of the first entry."""
    if not isinstance(entry, dict):
        raise InputError(f"{source}: entry 0 is {_shown(entry)}, expected an object")
    names = [key for key in entry if key not in METADATA_KEYS]
    if spec is not None:
        return [member for group in parse_channels(spec, names, str(source)) for member in group.members]
    # Anything else is a note of the user's own, such as a date.
    channels = [name for name in names if isinstance(entry[name], list)]
    if not channels:
        raise InputError(f"{source}: entry 0 has no channel, expected at least one list of keypoints beside its path")
    return channels


def _columns(entries: list[Any], channels: list[str], complete: bool) -> _Part | None:
    """Turns entries into columns without a Python loop over keypoints.

    Args:
        entries: the entries.
        channels: the channels to read.
        complete: whether the channels have to be all the lists that an entry holds.

    Returns:
        The columns, or None (or any error of a wrong type) if something is wrong with an entry.
    """
    names = list(map(itemgetter(PATH_KEY), entries))
    lists = list(chain.from_iterable(zip(*(map(itemgetter(name), entries) for name in channels), strict=True)))
    points = list(chain.from_iterable(lists))
    numbers = list(chain.from_iterable(points))
    sane = (
        set(map(type, names)) <= {str}
        and set(map(type, lists)) <= {list}
        and set(map(type, points)) <= {list}
        and set(map(type, numbers)) <= {int, float}
    )
    if not sane or (complete and not _same_channels(entries, channels)):
        return None
    lengths = np.fromiter(map(len, points), np.int64, len(points))
    with np.errstate(over="ignore"):
        values = np.fromiter(numbers, np.float64, len(numbers)).astype(np.float32)
    if not np.isfinite(values).all() or np.any((lengths != 2) & (lengths != 3)):
        return None
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    if not np.any(lengths == 3):
        return _Part(PackedStrings.pack(names), counts, values.reshape(-1, 2))
    starts = np.cumsum(lengths) - lengths
    uvd = np.full((len(points), 3), np.nan, np.float32)
    uvd[:, 0], uvd[:, 1] = values[starts], values[starts + 1]
    uvd[lengths == 3, 2] = values[starts[lengths == 3] + 2]
    return _Part(PackedStrings.pack(names), counts, uvd)


def _same_channels(entries: list[dict[str, Any]], channels: list[str]) -> bool:
    expected = {*channels, PATH_KEY}
    return all(expected == entry.keys() or not _unexpected(entry, channels) for entry in entries)


def _unexpected(entry: dict[str, Any], channels: Sequence[str]) -> list[str]:
    """Lists of an entry that are no channel of the first entry."""
    return [
        key
        for key, value in entry.items()
        if isinstance(value, list) and key not in channels and key not in METADATA_KEYS
    ]


def _join(parts: list[_Part], channels: list[str], source: Path, image_root: Path, coordinates: str) -> Annotations:
    """Puts the parts together and turns `v` over if it points up."""
    has_depth = any(part.uvd.shape[1] == 3 for part in parts)
    counts = np.concatenate([part.counts for part in parts])
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(torch.from_numpy(counts), 0, out=offsets[1:])
    xy = torch.from_numpy(np.concatenate([part.uvd[:, :2] for part in parts]))
    if coordinates == "blender":
        torch.sub(1, xy[:, 1], out=xy[:, 1])
    names = PackedStrings.concatenate([part.names for part in parts])
    return Annotations(
        source=source,
        image_root=image_root,
        channel_names=tuple(channels),
        coordinates=coordinates,
        names=names,
        entries=torch.arange(len(names)),
        xy=xy,
        offsets=offsets,
        depth=torch.from_numpy(np.concatenate([_depths(part.uvd) for part in parts])) if has_depth else None,
    )


def _depths(uvd: np.ndarray) -> np.ndarray:
    return uvd[:, 2] if uvd.shape[1] == 3 else np.full(len(uvd), np.nan, np.float32)


def _name_culprit(entries: list[Any], channels: list[str], complete: bool, first: int, source: Path) -> None:
    """Goes through entries one by one and raises the error of the first that is wrong."""
    for number, entry in enumerate(entries, first):
        place = f"{source}: entry {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{place} is {_shown(entry)}, expected an object")
        if PATH_KEY not in entry:
            hint = suggestion(PATH_KEY, [key for key in entry if key not in channels])
            raise InputError(f'{place} has no "{PATH_KEY}"{hint}')
        path = entry[PATH_KEY]
        if not isinstance(path, str):
            raise InputError(f'{place}: "{PATH_KEY}" is {_shown(path)}, expected a path in quotes')
        place = f'{place} ("{path}")'
        unexpected = _unexpected(entry, channels)
        for channel in channels:
            if channel not in entry:
                raise InputError(f'{place} has no channel "{channel}"{suggestion(channel, unexpected)}')
            _check_keypoints(entry[channel], f'{place}, channel "{channel}"')
        if complete and unexpected:
            raise InputError(f'{place} has a channel "{unexpected[0]}" that entry 0 has not')


def _check_keypoints(keypoints: Any, place: str) -> None:
    expected = "expected [u, v] or [u, v, depth]"
    if not isinstance(keypoints, list):
        raise InputError(f"{place} is {_shown(keypoints)}, expected a list of keypoints")
    for number, keypoint in enumerate(keypoints):
        if not isinstance(keypoint, list):
            raise InputError(f"{place}: keypoint {number} is {_shown(keypoint)}, {expected}")
        if len(keypoint) not in (2, 3):
            raise InputError(f"{place}: keypoint {number} has {len(keypoint)} numbers, {expected}")
        for value in keypoint:
            if type(value) not in (int, float):
                raise InputError(f"{place}: keypoint {number} holds {_shown(value)}, expected a number")
            if not abs(value) <= np.finfo(np.float32).max:
                raise InputError(f"{place}: keypoint {number} holds {_shown(value)}, expected a finite number")


def _shown(value: Any) -> str:
    """A value for a message: short, on one line."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
