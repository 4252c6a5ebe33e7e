"""The labels of a data set, in columns: a million images cost megabytes, and worker processes share them.

N images, C channels, T keypoints of all images together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keypoint_detection.data.channels import ChannelGroup, parse_channels


@dataclass(frozen=True, eq=False)
class PackedStrings:
    """Many strings in one tensor of UTF-8 bytes, so that processes share them without a copy.

    Attributes:
        characters: `(bytes,)` uint8, the strings one after another.
        offsets: `(N + 1,)` int64, where each string begins, and the end of the last one.
    """

    characters: Tensor
    offsets: Tensor

    @classmethod
    def pack(cls, strings: Sequence[str]) -> PackedStrings:
        """Packs strings, keeping their order."""
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
        characters = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)
        return cls(characters, torch.from_numpy(offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self.offsets[index : index + 2].tolist()
        return self.characters[start:end].numpy().tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        characters, start = self.characters.numpy(), 0
        for end in self.offsets.numpy()[1:]:
            yield characters[start:end].tobytes().decode("utf-8", "surrogatepass")
            start = end

    def take(self, indices: Tensor) -> PackedStrings:
        """Returns the strings at `indices`, `(M,)` int64."""
        positions, offsets = ragged_take(self.offsets, indices)
        return PackedStrings(self.characters[positions], offsets)


def ragged_take(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the elements of some rows of a ragged array.

    Args:
        offsets: `(R + 1,)` int64, where each row begins, and the end of the last one.
        rows: `(M,)` int64, the rows to find, in any order.

    Returns:
        The positions of their elements, `(E,)` int64, and the offsets of the new rows, `(M + 1,)` int64.
    """
    lengths = offsets.diff()[rows]
    new_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    shift = offsets[:-1][rows] - new_offsets[:-1]
    positions = torch.arange(int(new_offsets[-1])) + torch.repeat_interleave(shift, lengths)
    return positions, new_offsets


@dataclass(frozen=True, eq=False)
class Annotations:
    """The images of a data set and their keypoints.

    Every column is a torch tensor: forked workers share its pages, and spawned ones receive it through shared memory.

    Attributes:
        source: the file that was read.
        image_root: the folder that image paths are relative to.
        channel_names: the C channels.
        coordinates: the convention of the file: "blender", "normalized" or "pixel". The columns store "blender" as
            "normalized".
        names: the N image paths, as written in the file.
        entries: `(N,)` int64, the position of each image in the file, for messages.
        xy: `(T, 2)` float32, origin at the top left, in [0, 1] of the image if `normalized`, else in continuous pixels.
        offsets: `(N * C + 1,)` int64, where the keypoints of each image and channel begin in `xy`.
        depth: `(T,)` float32, NaN where the file has none, or None if it has none at all. Kept, but not used.
        declared_sizes: `(N, 2)` int64 width and height that the file states, 0 where it does not, or None.
        merged: maps each channel that was merged or renamed to its channels in the file.
        warnings: what is allowed in the file but worth a look, one line each.
    """

    source: Path
    image_root: Path
    channel_names: tuple[str, ...]
    coordinates: str
    names: PackedStrings
    entries: Tensor
    xy: Tensor
    offsets: Tensor
    depth: Tensor | None = None
    declared_sizes: Tensor | None = None
    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def groups(self) -> list[ChannelGroup]:
        """The C channels, and the channels of the file that each one consists of."""
        return [ChannelGroup(name, self.merged.get(name, (name,))) for name in self.channel_names]

    @property
    def normalized(self) -> bool:
        """Whether `xy` is in [0, 1] of the image instead of pixels."""
        return self.coordinates != "pixel"

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The path of an image, as written in the file."""
        return self.names[index]

    def path(self, index: int) -> Path:
        """The path of an image on this machine."""
        return self.image_root / self.names[index]

    def describe(self, index: int) -> str:
        """File, entry and image path: how a message about this image begins."""
        return f'{self.source}: entry {int(self.entries[index])} ("{self.name(index)}")'

    def keypoints(self, index: int, width: int, height: int) -> list[np.ndarray]:
        """The keypoints of an image of this size, for each channel `(K, 2)` float32 xy in continuous pixels."""
        channels = len(self.channel_names)
        bounds = self.offsets[index * channels : (index + 1) * channels + 1].tolist()
        first = bounds[0]
        xy = self.xy[first : bounds[-1]].numpy() * np.array([width, height] if self.normalized else 1, np.float32)
        return [xy[start - first : end - first] for start, end in pairwise(bounds)]

    def depths(self, index: int) -> list[np.ndarray]:
        """The depths of an image's keypoints, for each channel `(K,)` float32 in the file's unit, NaN for none."""
        channels = len(self.channel_names)
        bounds = self.offsets[index * channels : (index + 1) * channels + 1].tolist()
        if self.depth is None:
            return [np.full(end - start, np.nan, np.float32) for start, end in pairwise(bounds)]
        return [self.depth[start:end].numpy() for start, end in pairwise(bounds)]

    def counts(self) -> np.ndarray:
        """How many keypoints each image has in each channel, `(N, C)` int64."""
        return self.offsets.diff().reshape(len(self), len(self.channel_names)).numpy()

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Annotations:
        """Only the images at these positions, in this order; the columns are copied."""
        images = torch.as_tensor(indices, dtype=torch.int64)
        channels = len(self.channel_names)
        rows = (images[:, None] * channels + torch.arange(channels)).flatten()
        return replace(
            self._take_rows(rows),
            names=self.names.take(images),
            entries=self.entries[images],
            declared_sizes=None if self.declared_sizes is None else self.declared_sizes[images],
        )

    def select_channels(self, spec: Sequence[str] | str | None) -> Annotations:
        """Only these channels, in this order; `a=b` merges b into a, or renames b to a if there is no a.

        Args:
            spec: channels, in one string with spaces between them or one by one. None takes all.

        Raises:
            InputError: if a channel is unknown or asked for twice.
        """
        return self._merge_channels(parse_channels(spec, self.channel_names, str(self.source)))

    def _merge_channels(self, groups: Sequence[ChannelGroup]) -> Annotations:
        """Gathers the members of each group side by side, then drops the offsets between them."""
        columns = torch.tensor([self.channel_names.index(member) for group in groups for member in group.members])
        rows = (torch.arange(len(self))[:, None] * len(self.channel_names) + columns).flatten()
        gathered = self if torch.equal(rows, torch.arange(len(self.offsets) - 1)) else self._take_rows(rows)
        sizes = torch.tensor([len(group.members) for group in groups])
        starts = torch.arange(len(self))[:, None] * len(columns) + (sizes.cumsum(0) - sizes)
        kept = torch.cat([starts.flatten(), torch.tensor([len(self) * len(columns)])])
        of_file = {g.name: tuple(name for m in g.members for name in self.merged.get(m, (m,))) for g in groups}
        return replace(
            gathered,
            channel_names=tuple(group.name for group in groups),
            offsets=gathered.offsets[kept],
            merged={name: members for name, members in of_file.items() if members != (name,)},
        )

    def keep(self, mask: Tensor) -> Annotations:
        """Only the keypoints where `mask`, `(T,)` bool, is True; all images stay."""
        kept_before = torch.cat([torch.zeros(1, dtype=torch.int64), mask.cumsum(0)])
        depth = None if self.depth is None else self.depth[mask]
        return replace(self, xy=self.xy[mask], depth=depth, offsets=kept_before[self.offsets])

    def images_of_keypoints(self) -> Tensor:
        """The image that each keypoint belongs to, `(T,)` int64."""
        per_image = self.offsets[:: len(self.channel_names)].diff()
        return torch.repeat_interleave(torch.arange(len(self)), per_image)

    def fingerprint(self) -> str:
        """A SHA-256 of image paths, channels and keypoints, in hexadecimal: always the same for the same data."""
        digest = hashlib.sha256(repr((self.channel_names, self.normalized)).encode())
        for column in (self.names.characters, self.names.offsets, self.offsets, self.xy):
            digest.update(column.contiguous().numpy().reshape(-1).view(np.uint8))
        return digest.hexdigest()

    def _take_rows(self, rows: Tensor) -> Annotations:
        """The keypoints of these rows; a row is one channel of one image."""
        positions, offsets = ragged_take(self.offsets, rows)
        depth = None if self.depth is None else self.depth[positions]
        return replace(self, xy=self.xy[positions], depth=depth, offsets=offsets)
