"""Reads image files as RGB, and their sizes from the headers alone.

An EXIF rotation applies to everything: the size of an image, its pixels and its labels.
H W image, N images.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.decoding import (
    DECODING_ERRORS,
    ImageHeader,
    conversions,
    decode_header,
    decode_reduced,
    decode_rgb,
    has_16_bits,
)
from keypoint_detection.errors import InputError
from keypoint_detection.files import is_missing
from keypoint_detection.wording import counted, first_line

logger = logging.getLogger(__name__)
attempts_logger = logging.getLogger(f"{__name__}.attempts")  # retries, which every process reports for its own images

T = TypeVar("T")

# Seconds to wait before each retry if a disk or network fails temporarily.
RETRY_WAITS = (0.1, 0.5, 2.0, 5.0)
TRANSIENT_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EAGAIN", "EINTR", "EBUSY", "ENFILE", "EMFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENOTCONN"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"),
        *("EREMOTEIO", "ENOBUFS", "EPIPE", "ENOLINK"),
    )
    if hasattr(errno, name)
)
_SCAN_THREADS = 8
_SCAN_BLOCK = 512
_PROGRESS_BAR_FROM = 2000
# How many 16-bit images are checked for unused bits, and the value that no pixel reaches if two or more are unused.
_LOOKED_AT = 5
_DARK_BELOW = 2**16 // 4


def load_image(path: str | Path) -> np.ndarray:
    """Loads an image as `(H, W, 3)` uint8 RGB, turned upright according to EXIF.

    Transparent images are composited onto black, which is also the colour of padding. 16-bit images are scaled from
    their full range, floating-point ones from [0, 1]. An animation yields its first frame.

    Args:
        path: the file.

    Raises:
        InputError: naming the file, if it is missing, unreadable (after several attempts) or not an image.
    """
    return _with_image(Path(path), decode_rgb)


def load_reduced(
    path: str | Path, needed: Callable[[tuple[int, int]], tuple[int, int]]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Loads an image like `load_image`, but possibly at a reduced size: see `decode_reduced`."""
    return _with_image(Path(path), lambda image: decode_reduced(image, needed))


def read_header(path: str | Path) -> ImageHeader:
    """Reads the header of an image file.

    Raises:
        InputError: naming the file, if it is missing, unreadable (after several attempts) or not an image.
    """
    return _with_image(Path(path), decode_header)


def read_highest(path: str | Path) -> int:
    """Reads the highest pixel value of a 16-bit image, without scaling.

    Raises:
        InputError: naming the file, if it is missing, unreadable (after several attempts) or not an image.
    """
    return _with_image(Path(path), lambda image: int(np.asarray(image).max()))


def tell_of_unused_bits(annotations: Annotations, indices: Sequence[int]) -> str:
    """Checks whether 16-bit images use only 10, 12 or 14 of their bits, like those of industrial cameras.

    Args:
        annotations: the data set.
        indices: positions of its 16-bit images. At most five of them are read, evenly spaced.

    Returns:
        A message that they are nearly black, and how much brighter to save them; empty if any of them is not.
    """
    return _unused_bits([annotations.path(indices[place]) for place in _looked_at(len(indices))])


def warn_of_unused_bits(paths: Sequence[Path]) -> None:
    """Warns like `tell_of_unused_bits`, for images that belong to no data set.

    Args:
        paths: the images, of any bit depth. At most five of them are read, evenly spaced.
    """
    deep = []
    for path in map(paths.__getitem__, _looked_at(len(paths))):
        with contextlib.suppress(InputError, OSError):
            if path.is_file() and has_16_bits(read_header(path)):  # a pipe can be read only once
                deep.append(path)
    if unused := _unused_bits(deep):
        logger.warning("%s: %s", deep[0], unused)


def _looked_at(count: int) -> list[int]:
    return np.linspace(0, count - 1, min(_LOOKED_AT, count)).astype(int).tolist()


def _unused_bits(paths: Sequence[Path]) -> str:
    highest = []
    for path in paths:
        with contextlib.suppress(InputError):  # reported when the image is loaded
            highest.append(read_highest(path))
    most = max(highest, default=0)
    if not 0 < most < _DARK_BELOW:
        return ""
    factor = 1 << (65535 // most).bit_length() - 1
    return (
        f"16-bit images are nearly black: the brightest pixel is {most} of 65535 ({len(highest)} checked); save them "
        f"{factor} times as bright"
    )


def scan_sizes(
    annotations: Annotations, limit: int | None = 20000, folder_flag: str = "--image_dataset_path"
) -> np.ndarray:
    """Reads the headers of the images of a data set, and logs what the loader will convert.

    If there are 16-bit images, it also reads the pixels of a few, and warns if they are nearly black.

    Args:
        annotations: the data set.
        limit: the most headers to read, evenly spaced over the images. None reads all.
        folder_flag: the flag for the image folder, which the error names if even the first image is missing.

    Returns:
        `(N, 2)` int64 width and height of each image in pixels; 0 where the header was not read.

    Raises:
        InputError: naming file and entry of the first image that is missing or unreadable.
    """
    count = len(annotations)
    chosen = np.arange(count)
    if limit is not None and count > limit:
        chosen = np.unique(np.linspace(0, count - 1, limit).astype(np.int64))
        logger.info("%s: reading the headers of %d of %d images", annotations.source, len(chosen), count)

    sizes = np.zeros((count, 2), np.int64)
    kinds: Counter[str] = Counter()
    deep = []
    for index, header in scan_headers(annotations, chosen):
        if isinstance(header, InputError):
            path = annotations.path(index)
            if index != chosen[0] or not is_missing(path) or path_advice(path):
                raise header
            raise InputError(f"{header}; {folder_flag} names the folder that image paths are relative to")
        sizes[index] = header[:2]
        kinds.update(conversions(header))
        if has_16_bits(header):
            deep.append(index)
    for kind, number in kinds.items():
        logger.info("%s: %d of %s: %s", annotations.source, number, counted(len(chosen), "image"), kind)
    if unused := tell_of_unused_bits(annotations, deep):
        logger.warning("%s: %s", annotations.source, unused)
    return sizes


def complete_sizes(annotations: Annotations, sizes: np.ndarray, skip_unreadable: bool = False) -> np.ndarray:
    """Reads the headers of the images whose size is unknown.

    Args:
        annotations: the images.
        sizes: `(N, 2)` width and height of each image in pixels; 0 where unknown.
        skip_unreadable: leave the size of an unreadable image at 0; the error is reported when the image is loaded.

    Returns:
        `(N, 2)` int64 width and height of all images.

    Raises:
        InputError: naming file and entry of the first image that is missing or unreadable.
    """
    sizes = np.array(sizes, np.int64)
    for index, header in scan_headers(annotations, np.flatnonzero((sizes == 0).any(axis=1))):
        if not isinstance(header, InputError):
            sizes[index] = header[:2]
        elif not skip_unreadable:
            raise header
    return sizes


def scan_headers(
    annotations: Annotations, indices: Iterable[int], read: Callable[[Path], ImageHeader] | None = None
) -> Iterator[tuple[int, ImageHeader | InputError]]:
    """Reads the headers of some images in several threads, with a progress bar if there are many.

    Args:
        annotations: the data set.
        indices: positions of the images.
        read: the function that reads a header; None uses `read_header`.

    Yields:
        The position and the header of each image in the order of `indices`, or an error that names file and entry.
    """
    indices = [int(index) for index in indices]

    def attempt(index: int) -> ImageHeader | InputError:
        try:
            return (read or read_header)(annotations.path(index))
        except InputError as error:
            return InputError(f"{annotations.describe(index)}: {error}")

    hidden = True if len(indices) < _PROGRESS_BAR_FROM else None  # None shows it on a terminal
    with ThreadPoolExecutor(_SCAN_THREADS) as pool, tqdm(None, "Reading images", len(indices), disable=hidden) as bar:
        for start in range(0, len(indices), _SCAN_BLOCK):
            block = indices[start : start + _SCAN_BLOCK]
            for index, header in zip(block, pool.map(attempt, block), strict=True):
                bar.update()
                yield index, header


def _with_image(path: Path, use: Callable[[Image.Image], T]) -> T:
    """Opens an image and returns `use(image)`; retries after errors that may be temporary."""
    for wait in (*RETRY_WAITS, None):
        try:
            # Opened here, since Pillow memory-maps files that it opens itself, and some of its releases then garble the
            # pixels of uncompressed TIFF files that are rotated by EXIF.
            with path.open("rb") as file, Image.open(file) as image:
                return use(image)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except FileNotFoundError as error:
            advice = path_advice(path)
            raise InputError(f"{path}: no such image file{advice and f', {advice}'}") from error
        except OSError as error:
            if error.errno in TRANSIENT_ERRORS and wait is not None:
                attempts_logger.warning("%s: %s; trying again in %g s", path, error.strerror, wait)
                time.sleep(wait)
                continue
            raise InputError(f"{path}: {_reason(path, error)}") from error
        except Image.DecompressionBombError as error:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise InputError(f"{path}: more pixels than Pillow opens, expected at most {limit:,}") from error
        except DECODING_ERRORS as error:
            raise InputError(f"{path}: damaged or not an image ({first_line(error)})") from error
    raise AssertionError("the last attempt returns or raises")


def path_advice(path: Path) -> str:
    """What is wrong with a path that does not exist: it is a Windows path, or `predict` wrote it for a video frame."""
    if re.search(r"\.\w+#\d+$", path.name):
        return "this is a frame of a video, expected an image file"
    return 'expected "/" between folders' if "\\" in path.name else ""


def _reason(path: Path, error: OSError) -> str:
    if os.path.isdir(path):  # noqa: PTH112  Path's own fails, e.g. for a name that is too long
        return "is a folder, expected an image file"
    if error.errno is not None:
        attempts = f" after {len(RETRY_WAITS) + 1} attempts" if error.errno in TRANSIENT_ERRORS else ""
        return f"cannot be read{attempts} ({error.strerror})"
    if path.stat().st_size == 0:
        return "the file is empty, expected an image"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format, judging by its content"
    return f"damaged image ({first_line(error)})"
