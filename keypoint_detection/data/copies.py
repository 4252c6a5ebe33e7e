"""Images that stand in a data set under two names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from keypoint_detection.data.annotations import Annotations


def find_copies(annotations: Annotations, indices: Iterable[int]) -> list[tuple[int, int]]:
    """Finds image files of the very same content; only files of as many bytes as another one are read.

    Args:
        annotations: the data set.
        indices: positions of images whose files are there.

    Returns:
        The position of each copy and that of the first image with its content, in the order of `indices`.
    """
    of_length: dict[int, list[int]] = defaultdict(list)
    for index in indices:
        of_length[annotations.path(index).stat().st_size].append(index)
    found = []
    for group in of_length.values():
        first: dict[bytes, int] = {}
        for index in group if len(group) > 1 else ():
            digest = hashlib.blake2b(annotations.path(index).read_bytes()).digest()
            if first.setdefault(digest, index) != index:
                found.append((index, first[digest]))
    return sorted(found)


def tell_of_copies(annotations: Annotations, indices: Iterable[int]) -> str | None:
    """What to say about copies among some images whose files are there; None if there are none."""
    copies = find_copies(annotations, indices)
    if not copies:
        return None
    copy, original = map(annotations.name, copies[0])
    are = "image is a copy of another" if len(copies) == 1 else "images are copies of others"
    return (
        f"{len(copies)} {are}, such as {copy} of {original}; where one of two trains and the other validates, the "
        "metrics say little about new images"
    )
