"""Finds images that are in a data set under two names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from keypoint_detection.data.annotations import Annotations

# Limits for the comparison before training: number of images, and bytes read from their files.
MOST_IMAGES = 20_000
MOST_BYTES = 500_000_000


def find_copies(annotations: Annotations, indices: Iterable[int]) -> list[tuple[int, int]]:
    """Finds image files with identical content; reads only files that are as long as another one.

    Args:
        annotations: the data set.
        indices: positions of images whose files exist.

    Returns:
        The position of each copy, ascending, and that of the first image with its content.
    """
    found = []
    for group in by_length(annotations, indices).values():
        first: dict[bytes, int] = {}
        for index in group if len(group) > 1 else ():
            digest = content_digest(annotations, index)
            if first.setdefault(digest, index) != index:
                found.append((index, first[digest]))
    return sorted(found)


def find_copies_of_training_images(
    train: Annotations, other: Annotations, most_images: int = MOST_IMAGES, most_bytes: int = MOST_BYTES
) -> list[tuple[int, int]]:
    """Finds validation or test images whose files are identical to the file of a training image.

    Reads only files whose lengths match. A file that cannot be read is not a copy.

    Args:
        train: the training images.
        other: the validation or test images.
        most_images: if there are more images than this in both together, none are compared.
        most_bytes: the most bytes to read from all files together.

    Returns:
        The position of each copy in `other` and that of its original in `train`, in the order of `other`.
    """
    if len(train) + len(other) > most_images:
        return []
    of_length = by_length(train, range(len(train)))
    of_length.pop(0, None)
    digests: dict[int, dict[bytes, int]] = {}
    found, read = [], 0
    for index in range(len(other)):
        length = file_length(other, index)
        alike = of_length.get(length, [])
        cost = length * (1 if length in digests else 1 + len(alike))
        if not alike or read + cost > most_bytes:
            continue
        read += cost
        if length not in digests:
            digests[length] = {content_digest(train, same): same for same in reversed(alike)}
        original = digests[length].get(content_digest(other, index))
        if original is not None:
            found.append((index, original))
    return found


def by_length(annotations: Annotations, indices: Iterable[int]) -> dict[int, list[int]]:
    """Positions of images by the length of their files."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index in indices:
        groups[file_length(annotations, index)].append(index)
    return groups


def file_length(annotations: Annotations, index: int) -> int:
    """Bytes of an image's file, 0 if there is none."""
    try:
        return annotations.path(index).stat().st_size
    except OSError:
        return 0


def content_digest(annotations: Annotations, index: int) -> bytes:
    """A hash of the content of an image's file, or of its path if it cannot be read."""
    path = annotations.path(index)
    try:
        content = path.read_bytes()
    except OSError:
        content = str(path).encode(errors="surrogateescape")
    return hashlib.blake2b(content).digest()


def tell_of_copies(annotations: Annotations, indices: Iterable[int]) -> str | None:
    """A warning about copies among some images whose files exist; None if there are none."""
    copies = find_copies(annotations, indices)
    if not copies:
        return None
    copy, original = map(annotations.name, copies[0])
    are = "image is a copy of another" if len(copies) == 1 else "images are copies of others"
    return (
        f"{len(copies)} {are}, such as {copy} of {original}; if one is used for training and the other for validation, "
        "the metrics say little about new images"
    )
