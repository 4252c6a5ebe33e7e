"""Decoded images in memory, shared by all workers.

H W image, N images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.geometry import fit_size, fit_sizes, resize
from keypoint_detection.data.images import complete_sizes, load_image
from keypoint_detection.errors import InputError

# Shared memory is a file system on Linux, in containers often a small one.
SHARED_MEMORY_FOLDER = Path("/dev/shm")
CONTROL_GROUP_FOLDER = Path("/sys/fs/cgroup")
_KEPT_FREE = 0.2
_AUTOMATIC_BYTES = 10**9


class ImageCache:
    """Decoded images in shared memory; whichever process decodes an image first does so for all.

    The position of every image is computed in advance from the sizes, and the whole memory is allocated at once. If
    there are several training processes, each one has its own cache.

    Args:
        annotations: the data set.
        sizes: `(N, 2)` width and height of each image in pixels; 0 where unknown, in which case the header is read.
        image_size: height and width that images are resized to fit into before they are cached, which saves time and
            memory if they are never augmented; None caches them at full size.

    Raises:
        InputError: if the images need more than 80 % of the free memory.
    """

    def __init__(self, annotations: Annotations, sizes: np.ndarray, image_size: tuple[int, int] | None = None) -> None:
        self.annotations = annotations
        self.image_size = image_size
        sizes = complete_sizes(annotations, sizes)
        needed = fit_sizes(sizes, image_size).prod(1) * 3
        free = _usable_memory()
        if needed.sum() > free:
            raise InputError(
                f"{annotations.source}: caching {len(annotations)} decoded images needs {_gigabytes(needed.sum())}, "
                f"expected at most {_gigabytes(free)}, the memory available; --cache_images false turns it off"
            )
        self._sizes = torch.from_numpy(sizes)
        self._starts = torch.from_numpy(np.cumsum(needed) - needed)
        # Unlike `share_memory_()`, this does not copy.
        self._pixels = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(int(needed.sum())))
        self._filled = torch.zeros(len(annotations), dtype=torch.bool).share_memory_()

    def file_size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels of the file of image `index`."""
        width, height = self._sizes[index].tolist()
        return height, width

    def load(self, index: int) -> np.ndarray:
        """Returns image `index` as `(H, W, 3)` uint8 RGB: the cache itself, so do not write to it.

        Raises:
            InputError: naming the file, if it cannot be read or its size has changed.
        """
        start = int(self._starts[index])
        height, width = fit_size(self.file_size(index), self.image_size)
        place = self._pixels[start : start + width * height * 3].numpy().reshape(height, width, 3)
        # Two processes may fill in the same image at once: they write the same bytes, and set the flag last.
        if not self._filled[index]:
            place[:] = self._decode(index)
            self._filled[index] = True
        return place

    def _decode(self, index: int) -> np.ndarray:
        """Reads an image, and resizes it to the size at which it is cached."""
        path, size = self.annotations.path(index), self.file_size(index)
        pixels = load_image(path)
        if pixels.shape[:2] != size:
            raise InputError(
                f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {size[1]} x {size[0]} as when the run "
                "started"
            )
        return resize(pixels, fit_size(size, self.image_size)).permute(1, 2, 0).numpy()


def create_cache(
    annotations: Annotations,
    sizes: np.ndarray,
    cache_images: bool | Literal["auto"],
    image_size: tuple[int, int] | None = None,
) -> ImageCache | None:
    """Creates the cache of a set of images, if it should have one.

    Args:
        annotations: the images.
        sizes: `(N, 2)` width and height of each image in pixels; 0 where unknown.
        cache_images: whether to cache; "auto" does so if all sizes are known, and the cached images take up to a
            gigabyte and fit into the free memory.
        image_size: size to fit them into, see `ImageCache`.
    """
    if cache_images == "auto":
        needed = 3 * int(fit_sizes(sizes.astype(np.int64), image_size).prod(axis=1).sum()) if sizes.all() else None
        cache_images = needed is not None and needed <= min(_AUTOMATIC_BYTES, _usable_memory())
    return ImageCache(annotations, sizes, image_size) if cache_images else None


def _usable_memory() -> int:
    return int(free_memory() * (1 - _KEPT_FREE))


def free_memory() -> int:
    """Bytes that this process can still allocate, given the machine, its control group and shared memory."""
    if not hasattr(os, "sysconf"):  # Windows, where it is unknown
        return 0
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    group = CONTROL_GROUP_FOLDER
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_bytes().strip()) != b"max":
        limits.append(int(limit) - int((group / "memory.current").read_bytes()) + _cached_files(group))
    if SHARED_MEMORY_FOLDER.exists():
        statistics = os.statvfs(SHARED_MEMORY_FOLDER)
        limits.append(statistics.f_bavail * statistics.f_frsize)
    return max(min(limits), 0)


def _cached_files(group: Path) -> int:
    """Bytes of a control group's file cache, which is freed on demand; MemAvailable counts it as available, too."""
    statistics = group / "memory.stat"
    if not statistics.exists():
        return 0
    fields = dict(line.split() for line in statistics.read_text(encoding="utf-8").splitlines() if line.strip())
    return sum(int(fields.get(name, 0)) for name in ("active_file", "inactive_file"))


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.3g} GB"
