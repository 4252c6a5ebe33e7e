"""Files that are whole or not there at all, and what may stand in them."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from keypoint_detection.errors import InputError

# How text is written that UTF-8 does not have: the bytes of a file's name that are none, as JSON escapes them.
UNENCODABLE = "backslashreplace"


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


def check_given(path: str, flag: str, expected: str = "a file") -> None:
    """Checks that a path is not empty, as a variable of the shell that is not set leaves it.

    Args:
        path: The path.
        flag: The flag that it was given for.
        expected: What the path is to lead to.

    Raises:
        InputError: If it is.
    """
    if not path:
        raise InputError(f"{flag}: is empty, expected {expected}")


def refuse_overwriting(output: str | Path, sources: Iterable[str | Path]) -> None:
    """Checks that what is written does not take the place of what is read.

    Args:
        output: The file to write.
        sources: The files that are read.

    Raises:
        InputError: If it is one of them.
    """
    try:
        existing = Path(output).stat()
    except OSError:  # what is not there is not read, of a million images either
        return
    for source in sources:
        with contextlib.suppress(OSError):  # whoever reads it will see
            if os.path.samestat(existing, os.stat(source)):  # noqa: PTH116  a tenth of the time that its real path takes
                raise InputError(f"{output}: would overwrite the file that is read, expected another name")


def refuse_repeated_keys(path: str | Path) -> None:
    """Checks that no key stands twice in a mapping of a YAML file, of which loaders take the last one.

    Args:
        path: The file. What cannot be read as YAML, or not twice as a pipe, passes: it is for the loader.

    Raises:
        InputError: If one does.
    """
    try:
        nodes = [yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)] if Path(path).is_file() else []
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    for node in nodes:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [key.value for key, _ in entries]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"{key} stands there twice, expected it once")
        nodes += [value for _, value in entries if value not in nodes]  # which may be itself


def prepare_file(path: str | Path, flag: str) -> None:
    """Makes the folder of a file, and checks that the file can be written, before the work that fills it.

    Args:
        path: The file.
        flag: The flag that it was given for, or other words that it stands behind in messages.

    Raises:
        InputError: If it cannot, or the path is empty.
    """
    check_given(str(path), flag)
    asked = f"{flag} {path}"
    try:
        if Path(path).is_dir():
            raise InputError(f"{asked}: is a folder, expected a file")
        if is_special(Path(path)):
            if not os.access(path, os.W_OK):
                raise InputError(f"{asked}: cannot be written there (Permission denied)")
            return
        target = Path(os.path.realpath(path))  # a link is followed
        if target.is_symlink():
            raise InputError(f"{asked}: cannot be written there (a link that leads to itself)")
    except OSError as error:  # e.g. a name that is too long
        raise InputError(f"{asked}: cannot be written there ({error.strerror})") from error
    make_folder(target.parent, asked)


def unfinished(path: Path, token: str) -> Path:
    """The path beside which a file may grow until it is complete: in the folder for temporary files for a device.

    Args:
        path: The file.
        token: Text that no other command has, the same in all processes of this one.
    """
    if not is_special(path):
        return path.resolve()
    return Path(tempfile.gettempdir()) / f"keypoint-detection-{token}-{path.name}"


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


@contextlib.contextmanager
def replaced(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write to that takes the place of `path` once it is complete, so that a reader never finds half of it.

    Folders that are missing are made. Where the path is a link, what it leads to is replaced. What is no regular file,
    such as a pipe or a device, is never replaced: it is written into, as is this process's own output.

    Args:
        path: The file.
        mode: "wb" for bytes, "w" for text.

    Yields:
        The file.

    Raises:
        OSError: If it cannot be written; its `filename` is the path, and what was there before is as it was.
    """
    encoding, errors = (None, None) if "b" in mode else ("utf-8", UNENCODABLE)
    temporary: Path | None = None
    try:
        existing = _write_into(path)
        if existing is not None:
            with open(existing, mode, encoding=encoding, errors=errors) as file:  # noqa: PTH123  it may be a descriptor
                yield file
            return
        target = path.resolve()
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        error.filename = str(path)  # not set where the disk is full
        raise
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # e.g. a folder that is a file, which the error above has told
                temporary.unlink(missing_ok=True)


def _write_into(path: Path) -> Path | int | None:
    """What to open if the path is not to be replaced: itself, or a copy of a descriptor of this process."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or no file at all
            if os.path.samestat(status, os.fstat(stream.fileno())):
                # A file that the shell opened goes on behind what was said before.
                stream.flush()
                return os.dup(stream.fileno())
    return None if stat.S_ISREG(status.st_mode) else path


def is_missing(path: Path) -> bool:
    """Whether there is nothing at a path, as far as the system tells: in a folder that may not be read it does not."""
    try:
        return not path.exists()
    except OSError:
        return False


def is_special(path: Path) -> bool:
    """Whether there is something that can be written into but not replaced, such as a pipe or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Writes a file as `replaced` does.

    Args:
        path: The file.
        content: Text or bytes.

    Returns:
        The path.

    Raises:
        OSError: If it cannot be written; its `filename` is the path, and what was there before is as it was.
    """
    with replaced(path) as file:
        file.write(content.encode(errors=UNENCODABLE) if isinstance(content, str) else content)
    return path


def finite(value: Any) -> Any:
    """The same nested value with None for every float that is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
