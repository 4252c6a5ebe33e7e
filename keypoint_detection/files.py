"""Files that are written as a whole or not at all, checks of paths before the work, and what text files may hold."""

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

# How text that UTF-8 cannot encode is written, such as undecodable bytes in a file's name: escaped as in JSON.
UNENCODABLE = "backslashreplace"


def make_folder(folder: Path, asked: str) -> None:
    """Makes a folder and checks that files can be written there, before the work whose results go into it.

    Args:
        folder: The folder.
        asked: What the user asked for, such as `--output numbers.json`.

    Raises:
        InputError: If files cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(b"0" * 4096)  # a whole block, which fails on a full disk
    except OSError as error:
        raise InputError(f"{asked}: cannot be written there ({error.strerror or error})") from error


def check_given(path: str, flag: str, expected: str = "a file") -> None:
    """Checks that a path is not empty, for example because of an unset shell variable.

    Args:
        path: The path.
        flag: The flag that it was given for.
        expected: What the path should lead to.

    Raises:
        InputError: If it is empty.
    """
    if not path:
        raise InputError(f"{flag}: is empty, expected {expected}")


def refuse_overwriting(output: str | Path, sources: Iterable[str | Path]) -> None:
    """Checks that the output does not overwrite an input.

    Args:
        output: The file to write.
        sources: The files that are read.

    Raises:
        InputError: If the output is one of them.
    """
    try:
        existing = Path(output).stat()
    except OSError:  # a new file cannot be a source, so there is no need to look at perhaps a million images
        return
    for source in sources:
        with contextlib.suppress(OSError):  # reported when it is read
            if os.path.samestat(existing, os.stat(source)):  # noqa: PTH116  ten times as fast as its real path
                raise InputError(f"{output}: would overwrite an input file, expected another name")


@contextlib.contextmanager
def checked_yaml(source: str) -> Iterator[str]:
    """A YAML file for a loader to read, after `check_yaml`; one that does not exist or is not text is not checked.

    Args:
        source: The file, which may be a pipe.

    Yields:
        The file, or a temporary copy of what came through the pipe, which cannot be read twice.

    Raises:
        InputError: If a key is repeated, or a value contains itself.
    """
    path, is_pipe = Path(source), False
    with contextlib.suppress(OSError, UnicodeDecodeError):  # left to the loader
        content = path.read_bytes()
        is_pipe = is_special(path)
        check_yaml(content.decode())
    if not is_pipe:
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "flags.yaml"
        copy.write_bytes(content)
        yield str(copy)


def check_yaml(text: str) -> None:
    """Checks that no mapping repeats a key, of which loaders would take the last, and that no value contains itself.

    Args:
        text: YAML. If it cannot be parsed, that is left to the loader.

    Raises:
        InputError: If a key is repeated, or a value contains itself by an anchor and its alias.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return
    _check_node(root, "", {})


def _check_node(node: yaml.Node | None, place: str, complete: dict[yaml.Node, bool]) -> None:
    """Checks a node at a place such as `a.b[1]`, and what it consists of, unless an alias has led there before."""
    if node in complete:
        if not complete[node]:
            raise InputError(f"{place} is an alias of what contains it, expected a value")
        return
    complete[node] = False
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for key, (_, value) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise InputError(f"{key} appears twice, expected it once")
            _check_node(value, f"{place}.{key}" if place else str(key), complete)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _check_node(value, f"{place}[{number}]", complete)
    complete[node] = True


def prepare_file(path: str | Path, flag: str) -> None:
    """Makes the folder of a file and checks that the file can be written, before the work whose results go into it.

    Args:
        path: The file.
        flag: The flag that it was given for, or other words that precede the path in messages.

    Raises:
        InputError: If the file cannot be written, or the path is empty.
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
        target = Path(os.path.realpath(path))  # follow links
        if target.is_symlink():
            raise InputError(f"{asked}: cannot be written there (a link that leads to itself)")
    except OSError as error:  # e.g. the name is too long
        raise InputError(f"{asked}: cannot be written there ({error.strerror})") from error
    make_folder(target.parent, asked)


def unfinished(path: Path, token: str) -> Path:
    """The path next to which partial results are kept until the file is complete; a temporary path for a device.

    Args:
        path: The file.
        token: Text that is unique to this command and the same in all its processes.
    """
    if not is_special(path):
        return path.resolve()
    return Path(tempfile.gettempdir()) / f"keypoint-detection-{token}-{path.name}"


@contextlib.contextmanager
def writing(asked: str) -> Iterator[None]:
    """Turns errors of writing in its body, such as a full disk, into input errors.

    Args:
        asked: What the user asked for, such as `--output numbers.json`.

    Raises:
        InputError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{asked}: cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def replaced(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write to that replaces `path` once it is complete, so that readers never see half of it.

    Missing folders are made. If the path is a link, its target is replaced. Anything but a regular file, such as a
    pipe or a device, is not replaced but written into, and so is a file that is this process's own standard output or
    error.

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
        error.filename = str(path)  # not set if the disk is full
        raise
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # e.g. the folder is a file, which was reported above
                temporary.unlink(missing_ok=True)


def _write_into(path: Path) -> Path | int | None:
    """What to open if the path must not be replaced: the path itself, or a copy of a descriptor of this process."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # the stream is closed, or not a file
            if os.path.samestat(status, os.fstat(stream.fileno())):
                # A file that the shell opened is continued after what was written so far.
                stream.flush()
                return os.dup(stream.fileno())
    return None if stat.S_ISREG(status.st_mode) else path


def is_missing(path: Path) -> bool:
    """Whether there is certainly nothing at a path; False if the system does not say, as in an unreadable folder."""
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
    """The same nested value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
