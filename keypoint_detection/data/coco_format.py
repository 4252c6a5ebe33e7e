"""COCO keypoints: `{"images": [...], "annotations": [...], "categories": [...]}`, pixels with the origin top left.

The names in a category's `keypoints` are channels. Names that are numbered from 0, such as `corner_0, corner_1`, are
one channel `corner` with several keypoints. The keypoints of all objects in an image are combined, and the same name in
two categories is one channel. An image without objects is a negative. Objects without labelled keypoints, such as
COCO's crowds and small people, also count as background, and a warning says how many there are.

N images, C channels, T keypoints of all images together.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keypoint_detection.data.annotations import Annotations, PackedStrings
from keypoint_detection.data.channels import ChannelSpec, parse_channels, tell_left_out
from keypoint_detection.data.json_stream import JsonStream
from keypoint_detection.errors import InputError
from keypoint_detection.wording import counted, did_you_mean

_VISIBILITIES = (0, 1, 2)


@dataclass
class _Images:
    """The columns of "images"."""

    rows: dict[int | str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    sizes: array = field(default_factory=lambda: array("q"))


@dataclass
class _Objects:
    """The columns of "annotations"; `triples` holds x, y, visibility of all keypoints.

    For objects without keypoints, such as boxes, image and category are not checked; None stands for invalid ones.
    """

    numbers: array = field(default_factory=lambda: array("q"))
    images: list[int | str | None] = field(default_factory=list)
    categories: list[int | str | None] = field(default_factory=list)
    crowds: array = field(default_factory=lambda: array("b"))
    lengths: array = field(default_factory=lambda: array("q"))
    triples: array = field(default_factory=lambda: array("d"))


def read_coco(stream: JsonStream, image_root: Path, coordinates: str, spec: ChannelSpec) -> Annotations:
    """Reads all images of a COCO file.

    Args:
        stream: the file.
        image_root: the folder that image paths are relative to.
        coordinates: not used, COCO is always in pixels.
        spec: the channels to read, as in `Annotations.select_channels`.

    Raises:
        InputError: naming file and entry, for anything that does not conform to the format.
    """
    images, objects, categories = _Images(), _Objects(), None
    found = set()
    for key in stream:
        found.add(key)
        if key == "images":
            for number, entry in _entries(stream, "image"):
                _read_image(images, entry, f"{stream.path}: image {number}")
        elif key == "annotations":
            for number, entry in _entries(stream, "annotation"):
                _read_object(objects, entry, number, f"{stream.path}: annotation {number}")
        elif key == "categories":
            categories = _read_categories(stream)
    for key in ("images", "annotations", "categories"):
        if key not in found:
            hint = did_you_mean(key, found, '"{}"')
            raise InputError(f'{stream.path}: expected the key "{key}" at the top level{hint}')
    if not images.names:
        raise InputError(f'{stream.path}: the data set is empty, "images" holds nothing')
    annotations = _assemble(images, objects, categories or {}, stream.path, image_root)
    names, source = annotations.channel_names, str(stream.path)
    groups = parse_channels(spec, names, source)
    tell_left_out(groups, names, source)
    wanted = {member for group in groups for member in group.members}
    return replace(annotations.select_channels(spec), warnings=_unlabelled(images, objects, categories or {}, wanted))


def channels_of(names: Sequence[str]) -> list[str]:
    """The channel of each keypoint name: `a` for `a_0, a_1, ...` without gaps; otherwise the name itself."""
    numbers: dict[str, set[int]] = {}
    parts = [re.fullmatch(r"(.+)_(0|[1-9]\d{0,5})", name) for name in names]
    for match in filter(None, parts):
        numbers.setdefault(match[1], set()).add(int(match[2]))
    numbered = {stem for stem, found in numbers.items() if found == set(range(len(found))) and stem not in names}
    return [match[1] if match and match[1] in numbered else name for name, match in zip(names, parts, strict=True)]


def _entries(stream: JsonStream, what: str) -> Any:
    number = 0
    for part in stream.items():
        for entry in part:
            if not isinstance(entry, dict):
                raise InputError(f"{stream.path}: {what} {number} is {str(entry)[:60]}, expected an object")
            yield number, entry
            number += 1


def _whole(value: Any) -> Any:
    """Turns a whole number written as 640.0, as data frames do, into 640; returns anything else unchanged."""
    return int(value) if type(value) is float and value.is_integer() else value


def _identifier(entry: dict[str, Any], key: str, place: str) -> int | str:
    value = _whole(entry.get(key))
    if type(value) not in (int, str):
        raise InputError(f'{place}: "{key}" is {value!r:.60}, expected a whole number or text')
    return value


def _given_list(entry: dict[str, Any], key: str) -> Any:
    """The value of `key`, which should be a list; an empty one if there is none, as for boxes and masks."""
    value = entry.get(key)
    return [] if value is None else value


def _read_image(images: _Images, entry: dict[str, Any], place: str) -> None:
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise InputError(f'{place}: "file_name" is {name!r:.60}, expected a path in quotes')
    place = f'{place} ("{name}")'
    identifier = _identifier(entry, "id", place)
    if images.rows.setdefault(identifier, len(images.names)) != len(images.names):
        raise InputError(f"{place}: the id {identifier} already belongs to image {images.rows[identifier]}")
    images.names.append(name)
    for key in ("width", "height"):
        value = entry.get(key)
        pixels = 0 if value is None else _whole(value)
        if type(pixels) is not int or not 0 <= pixels < 1 << 31:
            raise InputError(f'{place}: "{key}" is {value!r:.60}, expected a whole number of pixels')
        images.sizes.append(pixels)


def _read_object(objects: _Objects, entry: dict[str, Any], number: int, place: str) -> None:
    keypoints = _given_list(entry, "keypoints")
    expected = "expected x, y, visibility of each keypoint"
    if not isinstance(keypoints, list):
        raise InputError(f'{place}: "keypoints" is {keypoints!r:.60}, {expected}')
    if len(keypoints) % 3:
        raise InputError(f'{place}: "keypoints" holds {counted(len(keypoints), "number")}, {expected}')
    for value in keypoints:
        if type(value) not in (int, float):
            raise InputError(f'{place}: "keypoints" holds {value!r:.60}, expected a number')
    objects.numbers.append(number)
    for column, key in ((objects.images, "image_id"), (objects.categories, "category_id")):
        known = keypoints or type(_whole(entry.get(key))) in (int, str)
        column.append(_identifier(entry, key, place) if known else None)
    objects.crowds.append(bool(entry.get("iscrowd")))
    objects.lengths.append(len(keypoints) // 3)
    try:
        objects.triples.extend(keypoints)
    except OverflowError as error:
        raise InputError(f'{place}: "keypoints" holds a number that is too large') from error


def _read_categories(stream: JsonStream) -> dict[int | str, list[str]]:
    """The names of each category's keypoints, for the categories that have any."""
    categories: dict[int | str, list[str]] = {}
    for number, entry in _entries(stream, "category"):
        names = _given_list(entry, "keypoints")
        place = f"{stream.path}: category {number}"
        if not isinstance(names, list):
            raise InputError(f'{place}: "keypoints" is {names!r:.60}, expected a list of names')
        for name in names:
            if not isinstance(name, str) or not name:
                raise InputError(f'{place}: "keypoints" holds {name!r:.60}, expected a list of names')
        if len(set(names)) < len(names):
            raise InputError(f'{place}: "keypoints" names a keypoint twice')
        identifier = _identifier(entry, "id", place)
        if identifier in categories:
            raise InputError(f"{place}: the id {identifier} already belongs to another category")
        categories[identifier] = names
    if not any(categories.values()):
        raise InputError(f'{stream.path}: no category has "keypoints", expected COCO keypoints, not boxes or masks')
    return categories


def _assemble(
    images: _Images, objects: _Objects, categories: dict[int | str, list[str]], source: Path, image_root: Path
) -> Annotations:
    """Sorts the keypoints of all objects by image and channel."""
    of_category = {identifier: channels_of(names) for identifier, names in categories.items()}
    channel_names = tuple(dict.fromkeys(name for names in of_category.values() for name in names))
    rows, channels = _addresses(images, objects, of_category, channel_names, source)
    triples = np.frombuffer(objects.triples, np.float64).reshape(-1, 3) if objects.triples else np.zeros((0, 3))
    present = triples[:, 2] != 0
    _check_numbers(triples, present, objects, source)
    address = (rows * len(channel_names) + channels)[present]
    order = np.argsort(address, kind="stable")
    counts = np.bincount(address, minlength=len(images.names) * len(channel_names))
    sizes = torch.tensor(images.sizes, dtype=torch.int64).reshape(-1, 2)
    return Annotations(
        source=source,
        image_root=image_root,
        channel_names=channel_names,
        coordinates="pixel",
        names=PackedStrings.pack(images.names),
        entries=torch.arange(len(images.names)),
        xy=torch.from_numpy(triples[present, :2][order].astype(np.float32)),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
        declared_sizes=sizes,
    )


def _addresses(
    images: _Images,
    objects: _Objects,
    of_category: dict[int | str, list[str]],
    channel_names: Sequence[str],
    source: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """The image and the channel of each keypoint of all objects, two `(keypoints,)` int64 arrays."""
    columns = {
        identifier: np.array([channel_names.index(name) for name in names], np.int64)
        for identifier, names in of_category.items()
    }
    rows, channels = [], [np.zeros(0, np.int64)]
    for number, image, category, length in zip(
        objects.numbers, objects.images, objects.categories, objects.lengths, strict=True
    ):
        if not length:
            rows.append(-1)
            continue
        place = f"{source}: annotation {number}"
        if image not in images.rows:
            raise InputError(f"{place}: no image has the id {image!r}")
        if category not in columns:
            raise InputError(f"{place}: no category has the id {category!r}")
        if length != len(columns[category]):
            raise InputError(
                f'{place} (image "{images.names[images.rows[image]]}"): {length} keypoints, expected the '
                f"{len(columns[category])} of its category"
            )
        rows.append(images.rows[image])
        channels.append(columns[category])
    return np.repeat(np.array(rows, np.int64), np.array(objects.lengths, np.int64)), np.concatenate(channels)


def _unlabelled(
    images: _Images, objects: _Objects, categories: dict[int | str, list[str]], wanted: set[str]
) -> tuple[str, ...]:
    """A warning about objects that could have keypoints of `wanted` channels but have no labelled keypoint at all."""
    concerned = {identifier for identifier, names in categories.items() if wanted.intersection(channels_of(names))}
    visibilities = np.frombuffer(objects.triples, np.float64)[2::3] if objects.triples else np.zeros(0)
    labelled = np.concatenate([[0], np.cumsum(visibilities != 0)])
    ends = np.cumsum(np.array(objects.lengths, np.int64))
    bare = np.flatnonzero(np.diff(labelled[ends], prepend=0) == 0).tolist()
    found = [at for at in bare if objects.categories[at] in concerned and objects.images[at] in images.rows]
    if not found:
        return ()
    crowds, places = sum(objects.crowds[at] for at in found), len({objects.images[at] for at in found})
    text = f"no labelled keypoint on {counted(len(found), 'object')} (iscrowd: {crowds}) in {counted(places, 'image')}"
    return (f"{text}; they count as background (see --empty_channels)",)


def _check_numbers(triples: np.ndarray, present: np.ndarray, objects: _Objects, source: Path) -> None:
    """Checks that visibilities are 0, 1 or 2, and that labelled keypoints have finite coordinates."""
    strange = ~np.isin(triples[:, 2], _VISIBILITIES)
    infinite = present & ~(np.abs(triples[:, :2]) <= np.finfo(np.float32).max).all(1)
    if not (strange | infinite).any():
        return
    first = int(np.nonzero(strange | infinite)[0][0])
    which = int(np.searchsorted(np.cumsum(objects.lengths), first, side="right"))
    what = "visibility 0, 1 or 2" if strange[first] else "finite coordinates"
    x, y, visibility = triples[first]
    raise InputError(
        f"{source}: annotation {objects.numbers[which]}: a keypoint is {x:g}, {y:g}, {visibility:g}, expected {what}"
    )
