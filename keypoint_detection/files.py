"""Files that are whole or not there at all, and what may stand in them."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keypoint_detection.errors import InputError


def make_folder(folder: Path, asked: str) -> None:
    """Makes a folder, and checks that files can be written there, before the work that fills it.

    Args:
        folder: The folder.
        asked: What the user asked for, such as `--output numbers.json`.

    Raises:
        InputError: If they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(b"0" * 4096)  # a block, which a full disk does not take
    except OSError as error:
        raise InputError(f"{asked}: cannot be written there ({error.strerror or error})") from error


def prepare_file(path: str | Path, asked: str) -> None:
    """Makes the folder of a file, and checks that the file can be written, before the work that fills it.

    Args:
        path: The file.
        asked: What the user asked for, such as `--output numbers.json`.

    Raises:
        InputError: If it cannot.
    """
    if Path(path).is_dir():
        raise InputError(f"{asked}: is a folder, expected a file")
    make_folder(Path(path).parent, asked)


@contextlib.contextmanager
def writing(asked: str) -> Iterator[None]:
    """What is written within it may fail, as on a disk that is full by now.

    Args:
        asked: What the user asked for, such as `--output numbers.json`.

    Raises:
        InputError: In the place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{asked}: cannot be written ({error.strerror or error})") from error


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Writes a file under a temporary name and renames it, so that a reader never finds half of it.

    Folders that are missing are made.

    Args:
        path: The file.
        content: Text or bytes.

    Returns:
        The path.

    Raises:
        OSError: If it cannot be written; its `filename` is the path, and what was there before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # not set where the disk is full
        raise
    finally:
        with contextlib.suppress(OSError):  # as of a folder that is a file, which the error above has told
            temporary.unlink(missing_ok=True)
    return path


def finite(value: Any) -> Any:
    """The same nested value with None for every float that is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
