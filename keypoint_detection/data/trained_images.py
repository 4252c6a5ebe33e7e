"""Recognises the images that a detector was trained on by the content of their files, whatever the labels say.

N images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.copies import MOST_BYTES, by_length, content_digest, file_length
from keypoint_detection.wording import counted

MOST_DIGESTS = 1000
# With more images than this, none are recorded, since the lengths of all files would have to be known.
MOST_LENGTHS = 100_000
_ABOVE_ALL = "g"  # comes after all hexadecimal digits


@dataclass(frozen=True)
class TrainedImages:
    """Digests of the files that a detector was trained on: of all, or of those with the smallest digests.

    A digest is 4 hexadecimal digits that depend on the length of a file, and 12 that depend on its content. So most
    other images are told apart, and those to record are chosen, without reading their files. Since the smallest digests
    are recorded, any image with a digest below a bound is known to be trained on or not, even if there are many.

    Attributes:
        digests: the digests, ascending, at most `MOST_DIGESTS`.
        below: all training images with a digest below this text are recorded; others only if they are in `digests`.
    """

    digests: tuple[str, ...]
    below: str

    @classmethod
    def of(cls, train: Annotations, most_bytes: int = MOST_BYTES) -> TrainedImages:
        """The record of training images.

        Args:
            train: the images.
            most_bytes: the most bytes to read from their files.
        """
        if len(train) > MOST_LENGTHS:
            return cls((), "")
        groups = by_length(train, range(len(train)))
        digests: set[str] = set()
        for key, length in sorted((_key(length), length) for length in groups if length):
            if len(digests) >= MOST_DIGESTS:
                return cls._smallest(digests, key)
            read = groups[length][: most_bytes // length]
            digests |= {_digest(train, index, key) for index in read}
            most_bytes -= length * len(read)
            if len(read) < len(groups[length]):
                return cls._smallest(digests, key)
        return cls._smallest(digests, _ABOVE_ALL)

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> TrainedImages | None:
        """What `record` returned; None if a checkpoint has no such record."""
        return None if record is None else cls(tuple(record["digests"].split()), record["below"])

    def record(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"digests": " ".join(self.digests), "below": self.below}  # one text is pickled faster than a thousand

    @property
    def is_complete(self) -> bool:
        """Whether all training images are recorded."""
        return self.below == _ABOVE_ALL

    def joined(self, other: TrainedImages) -> TrainedImages:
        """The record of the images of both."""
        return self._smallest({*self.digests, *other.digests}, min(self.below, other.below))

    def recognise(self, images: Annotations, most_bytes: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
        """Finds out which images were trained on.

        Args:
            images: the images. A missing file is not known.
            most_bytes: the most bytes to read from their files; files beyond that are not known.

        Returns:
            `(N,)` bool, whether each image is known to have been trained on, and `(N,)` bool, whether it is known not
            to have been.
        """
        trained, new = np.zeros((2, len(images)), dtype=bool)
        recorded, keys = set(self.digests), {digest[:4] for digest in self.digests}
        for index in range(len(images)):
            length = file_length(images, index)
            key = _key(length)
            cost = length if key in keys else 0
            if not length or cost > most_bytes:
                continue
            most_bytes -= cost
            digest = _digest(images, index, key) if cost else key + "f" * 12  # the largest that it may be
            trained[index] = digest in recorded
            new[index] = not trained[index] and digest < self.below
        return trained, new

    def tell(self, images: Annotations, most_bytes: float = math.inf) -> str:
        """How many images were trained on, as text; empty if none is known to have been.

        Args:
            images: the images.
            most_bytes: see `recognise`.
        """
        found = np.flatnonzero(self.recognise(images, most_bytes)[0])
        if not len(found):
            return ""
        least = "" if self.is_complete else "at least "
        return f"{least}{len(found)} of {counted(len(images), 'image')} (first: {images.name(int(found[0]))})"

    @classmethod
    def _smallest(cls, digests: Iterable[str], below: str) -> TrainedImages:
        ordered = sorted(digests)
        return cls(tuple(ordered[:MOST_DIGESTS]), min([below, *ordered[MOST_DIGESTS : MOST_DIGESTS + 1]]))


def _key(length: int) -> str:
    """How the digest of a file of this length begins."""
    return hashlib.blake2b(b"%d" % length, digest_size=2).hexdigest()


def _digest(annotations: Annotations, index: int, key: str) -> str:
    return key + content_digest(annotations, index).hex()[:12]
