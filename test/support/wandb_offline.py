"""Reads the `.wandb` file that every wandb run writes, online and offline, so that tests can assert what was logged.

The file is a LevelDB log behind a 7-byte header: blocks of 32 KiB that hold chunks of (checksum 4 bytes, length 2,
type 1, then the data); records longer than what is left of a block are split. Each record is a protobuf `Record`.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER = 7
BLOCK = 32 * 1024
CHUNK_HEADER = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class LoggedArtifact:
    """An artifact that the run logged; `files` maps its entries to the local files that hold them."""

    name: str
    type: str
    aliases: list[str]
    files: dict[str, Path]


@dataclass
class LoggedRun:
    """All that a run wrote down.

    `exit_code` is None for a run that did not end; `complete` is False if the file's tail is torn.
    """

    folder: Path
    id: str = ""
    project: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    artifacts: list[LoggedArtifact] = field(default_factory=list)
    exit_code: int | None = None
    complete: bool = True

    @property
    def keys(self) -> set[str]:
        """Every key that any row of the history has."""
        return {key for row in self.history for key in row}

    def values(self, key: str) -> list[Any]:
        """What was logged under a key, in order."""
        return [row[key] for row in self.history if key in row]

    def pictures(self, key: str) -> list[Path]:
        """The picture files logged under a key, in order. Raises FileNotFoundError if one is not there."""
        names = [name for value in self.values(key) for name in value.get("filenames", [value.get("path")])]
        paths = [self.folder / "files" / name for name in names]
        for path in paths:
            path.stat()
        return paths


def read_runs(folder: Path | str) -> list[LoggedRun]:
    """Read all runs below a folder, oldest first to the second (those of one second by their id)."""
    files = Path(folder).rglob("run-*.wandb")
    return [read_run(path) for path in sorted(files, key=lambda path: path.parent.name.removeprefix("offline-"))]


def read_run(path: Path | str) -> LoggedRun:
    """Read one `.wandb` file.

    Raises:
        ValueError: the file is no wandb file, or damaged elsewhere than at its end.
    """
    run = LoggedRun(Path(path).parent)
    for data in _records(Path(path).read_bytes(), run):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind in READERS:
            READERS[kind](run, getattr(record, kind))
    return run


def _records(content: bytes, run: LoggedRun) -> Iterator[bytes]:
    """The records' data. A torn tail, as a killed process leaves it, ends them and clears `run.complete`."""
    if content[:4] != b":W&B":
        raise ValueError(f"{run.folder}: no wandb file")
    position, parts = HEADER, []
    while position < len(content):
        left = BLOCK - position % BLOCK
        if left < CHUNK_HEADER:  # too small for a chunk: filled up with zeros
            position += left
            continue
        if position + CHUNK_HEADER > len(content):
            break
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        data = content[position + CHUNK_HEADER : position + CHUNK_HEADER + length]
        if len(data) < length:
            break
        if zlib.crc32(bytes([kind]) + data) != checksum:
            raise ValueError(f"{run.folder}: checksum of the chunk at byte {position} is wrong")
        position += CHUNK_HEADER + length
        parts = [data] if kind in (FULL, FIRST) else [*parts, data]
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []
    run.complete = position == len(content) and not parts


def _read_run(run: LoggedRun, record: Any) -> None:
    run.id, run.project, run.name = record.run_id, record.project, record.display_name
    _update(run.config, record.config.update)


def _read_artifact(run: LoggedRun, record: Any) -> None:
    files = {entry.path: Path(entry.local_path) for entry in record.manifest.contents}
    run.artifacts.append(LoggedArtifact(record.name, record.type, list(record.aliases), files))


def _read_history(run: LoggedRun, record: Any) -> None:
    row: dict[str, Any] = {}
    _update(row, record.item)
    run.history.append(row)


def _read_exit(run: LoggedRun, record: Any) -> None:
    run.exit_code = record.exit_code


def _update(values: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = values
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)


READERS = {
    "run": _read_run,
    "config": lambda run, record: _update(run.config, record.update),
    "history": _read_history,
    "summary": lambda run, record: _update(run.summary, record.update),
    "files": lambda run, record: run.files.extend(item.path for item in record.files),
    "artifact": _read_artifact,
    "exit": _read_exit,
}
