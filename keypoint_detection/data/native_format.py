"""The project's own JSON: `{"dataset": [{"image_path": ..., "<channel>": [[u, v] or [u, v, d], ...], ...}]}`.

N images, C channels, T keypoints of all images together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keypoint_detection.data.annotations import Annotations, PackedStrings
from keypoint_detection.data.channels import ChannelGroup, ChannelSpec, parse_channels, split_word, tell_left_out
from keypoint_detection.data.growing_array import GrowingArray
from keypoint_detection.data.json_stream import JsonStream
from keypoint_detection.errors import InputError
from keypoint_detection.wording import counted, did_you_mean

LARGEST = float(np.finfo(np.float32).max)
COORDINATES = ("blender", "normalized", "pixel")
DEFAULT_COORDINATES = COORDINATES[0]
# Reserved keys of an entry, which are never channels.
PATH_KEY = "image_path"
SCORES_KEY = "scores"
METADATA_KEYS = frozenset({PATH_KEY, SCORES_KEY})


def check_writable(channel_names: Sequence[str]) -> None:
    """Checks that no channel has the name of a reserved key.

    Raises:
        InputError: If one has: it would be lost when the file is read.
    """
    for name in METADATA_KEYS.intersection(channel_names):
        raise InputError(f'the native format reserves the name of channel "{name}", expected another name or format')


class _Columns:
    """The columns of the entries read so far, in arrays that grow in place."""

    def __init__(self) -> None:
        self.characters = GrowingArray(np.uint8)
        self.name_lengths = GrowingArray(np.int64)
        self.counts = GrowingArray(np.int64)
        self.xy = GrowingArray(np.float32)
        self.depth = GrowingArray(np.float32)
        self.has_depth = False


def read_native(stream: JsonStream, image_root: Path, coordinates: str, spec: ChannelSpec) -> Annotations:
    """Reads all images of a file in the project's own format.

    Args:
        stream: the file.
        image_root: the folder that image paths are relative to.
        coordinates: "blender", "normalized" or "pixel"; if the file states its convention, that takes precedence.
        spec: the channels to read, as in `Annotations.select_channels`.

    Raises:
        InputError: naming file and entry, for anything that does not conform to the format.
    """
    columns: _Columns | None = None
    channels: list[str] = []
    for key in stream:
        if key == "coordinates":
            coordinates = stream.value()
            if coordinates not in COORDINATES:
                raise InputError(
                    f'{stream.path}: "coordinates" is {_shown(coordinates)}, expected one of: {", ".join(COORDINATES)}'
                )
        elif key == "dataset":
            columns, channels = _read_entries(stream, spec)
    if columns is None or len(columns.name_lengths) == 0:
        what = 'expected the key "dataset" at the top level' if columns is None else "the data set is empty"
        raise InputError(f"{stream.path}: {what}")
    return _finish(columns, channels, stream.path, image_root, coordinates).select_channels(spec)


def _read_entries(stream: JsonStream, spec: ChannelSpec) -> tuple[_Columns, list[str]]:
    columns = _Columns()
    channels: list[str] = []
    missing: list[str] = []
    number = 0
    for entries in stream.items():
        if number == 0:
            channels = _choose_channels(entries[0], spec, stream.path)
            missing = _names_without_channel(spec, channels)
        for name in missing:
            for place, entry in enumerate(entries, start=number):
                if isinstance(entry, dict) and name in entry:
                    raise InputError(f'{stream.path}: entry {place} has the channel "{name}", but entry 0 does not')
        if not _append(columns, entries, channels, complete=spec is None):
            _name_culprit(entries, channels, spec is None, number, stream.path)
            raise AssertionError("the fast check refused an entry that the slow check accepts")
        number += len(entries)
    return columns, channels


def _choose_channels(entry: Any, spec: ChannelSpec, source: Path) -> list[str]:
    """The channels to read: those asked for, or every list of the first entry."""
    if not isinstance(entry, dict):
        raise InputError(f"{source}: entry 0 is {_shown(entry)}, expected an object")
    _refuse_scores(entry, f"{source}: entry 0")
    names = [key for key in entry if key not in METADATA_KEYS]
    if spec is not None:
        groups = parse_channels(spec, names, str(source))
        tell_left_out(groups, [name for name in names if isinstance(entry[name], list)], str(source))
        return [member for group in groups for member in group.members]
    # Anything else is the user's own metadata, such as a date.
    channels = [name for name in names if isinstance(entry[name], list)]
    if not channels:
        raise InputError(f"{source}: entry 0 has no channel, expected at least one list of keypoints besides its path")
    return channels


def _names_without_channel(spec: ChannelSpec, channels: list[str]) -> list[str]:
    """Requested names that are not channels of the first entry, so that no other entry may have them either."""
    words = spec.split() if isinstance(spec, str) else spec or ()
    asked = [word.members if isinstance(word, ChannelGroup) else split_word(word, channels) for word in words]
    return [name for names in asked for name in names if name not in channels]


def _append(columns: _Columns, entries: list[Any], channels: list[str], complete: bool) -> bool:
    """Appends entries to the columns without a Python loop over keypoints.

    Args:
        columns: the columns to append to.
        entries: the entries.
        channels: the channels to read.
        complete: whether an entry may hold no lists other than these channels.

    Returns:
        False, with nothing appended, if something is wrong with an entry.
    """
    try:
        names = list(map(itemgetter(PATH_KEY), entries))
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        lists = list(chain.from_iterable(zip(*(map(itemgetter(name), entries) for name in channels), strict=True)))
        points = list(chain.from_iterable(lists))
        numbers = list(chain.from_iterable(points))
    except (TypeError, KeyError, AttributeError):
        return False
    if not (set(map(type, lists)) <= {list} and set(map(type, points)) <= {list}):
        return False
    if any(map(_has_scores_channel, entries)):
        return False
    if not set(map(type, numbers)) <= {int, float} or (complete and not _same_channels(entries, channels)):
        return False
    lengths = np.fromiter(map(len, points), np.int64, len(points))
    values = _to_float32(numbers)
    if values is None or np.any((lengths != 2) & (lengths != 3)):
        return False
    starts = np.cumsum(lengths) - lengths
    columns.characters.extend(np.frombuffer(b"".join(encoded), np.uint8))
    columns.name_lengths.extend(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    columns.counts.extend(np.fromiter(map(len, lists), np.int64, len(lists)))
    columns.xy.extend(values[np.stack([starts, starts + 1], 1)].reshape(-1))
    _append_depth(columns, values, starts, lengths == 3)
    return True


def _append_depth(columns: _Columns, values: np.ndarray, starts: np.ndarray, given: np.ndarray) -> None:
    """Appends the depth of each keypoint, NaN where it has none; nothing until the first keypoint with a depth."""
    if not columns.has_depth and not given.any():
        return
    columns.has_depth = True
    before = len(columns.xy) // 2 - len(starts) - len(columns.depth)
    depth = np.full(before + len(starts), np.nan, np.float32)
    depth[before:][given] = values[starts[given] + 2]
    columns.depth.extend(depth)


def _to_float32(numbers: list[int | float]) -> np.ndarray | None:
    """The numbers as float32, or None if one of them is not finite."""
    try:
        values = np.fromiter(numbers, np.float64, len(numbers))
    except OverflowError:
        return None
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    return values if np.isfinite(values).all() else None


def _same_channels(entries: list[dict[str, Any]], channels: list[str]) -> bool:
    expected = {*channels, PATH_KEY}
    return all(expected == entry.keys() or not _unexpected(entry, channels) for entry in entries)


def _unexpected(entry: dict[str, Any], channels: Sequence[str]) -> list[str]:
    """Keys of an entry that hold lists but are not among the channels."""
    return [
        key
        for key, value in entry.items()
        if isinstance(value, list) and key not in channels and key not in METADATA_KEYS
    ]


def _has_scores_channel(entry: dict[str, Any]) -> bool:
    """Whether an entry uses the key for prediction scores as a channel of keypoints, which would be lost."""
    scores = entry.get(SCORES_KEY)
    return isinstance(scores, list) and any(isinstance(point, list) and len(point) in (2, 3) for point in scores)


def _refuse_scores(entry: dict[str, Any], place: str) -> None:
    if _has_scores_channel(entry):
        raise InputError(
            f'{place}: "{SCORES_KEY}" is a list of keypoints, but that key is reserved for the scores of predictions, '
            "expected another name for the channel"
        )


def _finish(columns: _Columns, channels: list[str], source: Path, image_root: Path, coordinates: str) -> Annotations:
    """Converts lengths to offsets, and flips `v` if it points up."""
    names = PackedStrings(torch.from_numpy(columns.characters.finish()), _offsets(columns.name_lengths.finish()))
    xy = torch.from_numpy(columns.xy.finish().reshape(-1, 2))
    if coordinates == "blender":
        torch.sub(1, xy[:, 1], out=xy[:, 1])
    return Annotations(
        source=source,
        image_root=image_root,
        channel_names=tuple(channels),
        coordinates=coordinates,
        names=names,
        entries=torch.arange(len(names)),
        xy=xy,
        offsets=_offsets(columns.counts.finish()),
        depth=torch.from_numpy(columns.depth.finish()) if columns.has_depth else None,
    )


def _offsets(lengths: np.ndarray) -> torch.Tensor:
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(torch.from_numpy(lengths), 0, out=offsets[1:])
    return offsets


def _name_culprit(entries: list[Any], channels: list[str], complete: bool, first: int, source: Path) -> None:
    """Checks entries one by one and raises an error for the first invalid one."""
    # If no channels were asked for, all lists are channels, even a camera's pose.
    advice = "; if it is not a channel, name the channels with --keypoint_channels" if complete else ""
    for number, entry in enumerate(entries, first):
        place = f"{source}: entry {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{place} is {_shown(entry)}, expected an object")
        if PATH_KEY not in entry:
            hint = did_you_mean(PATH_KEY, [key for key in entry if key not in channels], '"{}"')
            raise InputError(f'{place} has no "{PATH_KEY}"{hint}')
        path = entry[PATH_KEY]
        if not isinstance(path, str):
            raise InputError(f'{place}: "{PATH_KEY}" is {_shown(path)}, expected a path in quotes')
        place = f'{place} ("{path}")'
        _refuse_scores(entry, place)
        unexpected = _unexpected(entry, channels)
        for channel in channels:
            if channel not in entry:
                hint = did_you_mean(channel, unexpected, '"{}"')
                raise InputError(f'{place} has no channel "{channel}"{hint}')
            _check_keypoints(entry[channel], f'{place}, channel "{channel}"', advice)
        if complete and unexpected:
            raise InputError(f'{place} has a channel "{unexpected[0]}", for which entry 0 has no list{advice}')


def _check_keypoints(keypoints: Any, place: str, advice: str) -> None:
    expected = f"expected [u, v] or [u, v, depth]{advice}"
    if not isinstance(keypoints, list):
        raise InputError(f"{place} is {_shown(keypoints)}, expected a list of keypoints{advice}")
    for number, keypoint in enumerate(keypoints):
        if not isinstance(keypoint, list):
            raise InputError(f"{place}: keypoint {number} is {_shown(keypoint)}, {expected}")
        if len(keypoint) not in (2, 3):
            raise InputError(f"{place}: keypoint {number} has {counted(len(keypoint), 'number')}, {expected}")
        for value in keypoint:
            if type(value) not in (int, float):
                raise InputError(f"{place}: keypoint {number} holds {_shown(value)}, expected a number")
            if not abs(value) <= LARGEST:
                raise InputError(f"{place}: keypoint {number} holds {_shown(value)}, expected a finite number")


def _shown(value: Any) -> str:
    """A value for a message: short, on one line."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
