"""File formats of data sets: a registry of readers and writers, and the checks that all formats share."""

from __future__ import annotations

import gc
import logging
import posixpath
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.channels import ChannelSpec
from keypoint_detection.data.coco_format import read_coco
from keypoint_detection.data.format_writers import write_coco, write_native
from keypoint_detection.data.json_stream import JsonStream
from keypoint_detection.data.native_format import COORDINATES, DEFAULT_COORDINATES, read_native
from keypoint_detection.errors import InputError

logger = logging.getLogger(__name__)

# Half of a character that UTF-16 writes as a pair; on its own, it is not a character.
_HALF_PAIR = re.compile("[\ud800-\udfff]")

Reader = Callable[[JsonStream, Path, str, ChannelSpec], Annotations]

Writer = Callable[[Annotations, Path, np.ndarray, str], None]


class Format(NamedTuple):
    """A file format.

    Attributes:
        keys: keys at the top level of the JSON, any of which identifies this format.
        read: `read(stream, image_root, coordinates, channels) -> Annotations`.
        write: `write(annotations, path, sizes, coordinates)`.
    """

    keys: frozenset[str]
    read: Reader
    write: Writer


FORMATS: dict[str, Format] = {
    "native": Format(frozenset({"dataset"}), read_native, write_native),
    "coco": Format(frozenset({"images", "annotations", "categories"}), read_coco, write_coco),
}


def read_annotations(
    json_path: str | Path,
    image_root: str | Path,
    *,
    keypoint_channels: ChannelSpec = None,
    keypoint_coordinates: str = DEFAULT_COORDINATES,
    report: bool = True,
) -> Annotations:
    """Reads and checks the labels of a data set, without opening its images.

    Args:
        json_path: the file, in one of `FORMATS`.
        image_root: the folder that image paths are relative to.
        keypoint_channels: the channels to read, in one string with spaces between them or one by one; `a=b` merges b
            into a, or renames b to a if there is no a. A group takes those of its members that the file has. None takes
            all.
        keypoint_coordinates: "blender" (origin bottom left, in [0, 1]), "normalized" (origin top left, in [0, 1]) or
            "pixel" (origin top left). It does not apply to COCO, or to a file that states its own convention.
        report: whether to log the warnings of the annotations.

    Raises:
        InputError: in one line that names file and entry, for anything that is wrong with the file.
    """
    source, root = Path(json_path), Path(image_root)
    check_coordinates("keypoint_coordinates", keypoint_coordinates)
    reader = FORMATS[recognise(source)].read
    try:
        problem = "" if root.is_dir() else "not a folder" if root.exists() else "no such folder"
    except OSError as error:  # e.g. a name that is too long
        problem = f"cannot be read ({error.strerror})"
    if problem:
        raise InputError(f"{root}: {problem}, expected the folder of the images")
    with _garbage_collector_paused(), JsonStream(source) as stream:
        annotations = reader(stream, root, keypoint_coordinates, keypoint_channels)
    _check_names(annotations)
    for warning in annotations.warnings if report else ():
        logger.warning("%s: %s", annotations.source, warning)
    return annotations


def recognise(json_path: Path) -> str:
    """Recognises the format of a file, a key of `FORMATS`, from its content.

    Raises:
        InputError: if it has none of these formats.
    """
    found: list[str] = []
    with JsonStream(json_path, part_characters=1 << 16) as stream:
        for key in stream:
            for name, format_ in FORMATS.items():
                if key in format_.keys:
                    return name
            found.append(key)
    raise InputError(
        f'{json_path}: expected the key "dataset" (or "images", "annotations" and "categories" of COCO) at the top '
        f"level, found {', '.join(found) or 'none'}"
    )


def check_coordinates(name: str, value: str) -> None:
    """Checks the name of a coordinate convention.

    Args:
        name: the argument or flag.
        value: what was given for it.

    Raises:
        InputError: if it is none of `COORDINATES`.
    """
    if value not in COORDINATES:
        raise InputError(f"--{name} {value}: expected one of {', '.join(COORDINATES)}")


@contextmanager
def _garbage_collector_paused() -> Iterator[None]:
    """Parsing creates millions of lists but no cycles; looking for cycles takes five times as long as parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_names(annotations: Annotations) -> None:
    """Checks that names are valid text, and that each path stays inside the image folder and occurs only once."""
    for name in annotations.channel_names:
        if _no_text(name):
            raise InputError(f"{annotations.source}: channel {name!a} holds {_no_text(name)}")
    hashes = np.empty(len(annotations), np.int64)
    for index, name in enumerate(annotations.names):
        plain = _plain_path(name)
        if plain is None:
            _refuse_path(annotations, index, name)
        hashes[index] = hash(plain)
    order = np.argsort(hashes, kind="stable")
    repeated = np.nonzero(np.diff(hashes[order]) == 0)[0]
    if len(repeated):
        later = int(order[repeated + 1].min())
        earlier = int(np.nonzero(hashes == hashes[later])[0][0])
        raise InputError(
            f"{annotations.describe(later)}: this image is already in the file, as entry "
            f"{int(annotations.entries[earlier])}"
        )


def _plain_path(name: str) -> str | None:
    """The path in its shortest form, so that `./a.png` and `a.png` are one; None if it leaves its folder."""
    plain = posixpath.normpath(name) if "./" in name or "//" in name else name
    inside = plain and plain != "." and plain[0] != "/" and plain[:3] != "../" and plain != ".."
    return plain if inside and not _no_text(plain) else None


def _no_text(name: str) -> str:
    """What makes a name invalid text (JSON can contain it as an escape); an empty string if nothing does."""
    if "\0" in name:
        return "a null character"
    return "" if name.isascii() or not _HALF_PAIR.search(name) else "half of a surrogate pair"


def _refuse_path(annotations: Annotations, index: int, name: str) -> None:
    if not name or posixpath.normpath(name) == ".":
        raise InputError(f"{annotations.describe(index)}: the path is empty, expected the path of an image")
    if _no_text(name):
        entry = int(annotations.entries[index])
        raise InputError(f"{annotations.source}: entry {entry}: the path holds {_no_text(name)}")
    raise InputError(
        f"{annotations.describe(index)}: the path leads out of the image folder {annotations.image_root}, expected a "
        "path inside it"
    )
