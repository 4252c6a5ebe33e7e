"""Files that are whole or not there at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Writes a file under a temporary name and renames it, so that a reader never finds half of it.

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
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # not set where the disk is full
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path
